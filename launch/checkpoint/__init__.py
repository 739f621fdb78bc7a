"""A generation that was interrupted goes on: what is kept of it, and how a pipeline takes it up."""
