"""Quality: what video shows at the training horizon and beyond, measured from its pixels."""
