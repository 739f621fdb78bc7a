"""Parts of the training compute what diffusers' own parts compute."""

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from lvsa.studies.tiny_wan import captions, chunks, clips, model, text
from lvsa.studies.tiny_wan.dit_stage import Denoiser, DiTTraining, draw_sigmas


def test_tokenizer_knows_the_words_and_spells_the_rest() -> None:
    tokenizer = model.build_tokenizer()
    for scene in captions.held_out():
        # One token a word, and the end.
        assert len(tokenizer(scene.caption).input_ids) == len(scene.caption.split()) + 1
    assert len(tokenizer("").input_ids) == 1
    strange = "Ein Hündchen läuft – 犬"
    ids = tokenizer(strange).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == strange


def test_two_passes_equal_the_vae_s_own_frame_by_frame() -> None:
    torch.manual_seed(0)
    vae = model.build_vae(base_dim=4).eval()
    video = clips.render([clips.random_clip(17, np.random.default_rng(1))])
    with torch.no_grad():
        parameters = chunks.encode(vae, video)
        torch.testing.assert_close(
            parameters, vae.encode(video).latent_dist.parameters, atol=1e-5, rtol=1e-5
        )
        mean = parameters.chunk(2, dim=1)[0]
        assert mean.shape == (1, 8, 5, 8, 8)
        decoded = chunks.decode(vae, mean)
        torch.testing.assert_close(
            decoded.clamp(-1, 1), vae.decode(mean).sample, atol=1e-5, rtol=1e-5
        )


def test_training_s_attention_and_short_text_equal_the_pipeline_s() -> None:
    torch.manual_seed(0)
    tokenizer = model.build_tokenizer()
    settings = DiTTraining(heads=2, head_dim=12, layers=2)
    denoiser = Denoiser(settings, len(tokenizer)).eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight)
    prompts = ["a red circle bounces", "", "a red circle and a cyan ring meet"]
    ids, mask = text.tokenize(tokenizer, prompts)
    noisy, timestep = torch.randn(3, 8, 3, 8, 8), torch.tensor([900.0, 500.0, 10.0])
    with torch.no_grad():
        short = denoiser(noisy, timestep, ids, mask)
        pipe = model.build_pipeline(
            model.build_vae(base_dim=4), tokenizer, denoiser.text_encoder, denoiser.transformer
        )
        rows, _ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=512
        )
        denoiser.transformer.set_attn_processor(WanAttnProcessor())
        padded = denoiser.transformer(noisy, timestep, rows, return_dict=False)[0]
    torch.testing.assert_close(short, padded, atol=1e-4, rtol=1e-4)


def test_sigmas_are_the_scheduler_s() -> None:
    sigmas = draw_sigmas(1000, torch.Generator().manual_seed(0)).sort(descending=True).values
    scheduler = model.FlowMatchEulerDiscreteScheduler(shift=model.FLOW_SHIFT)
    # Strata of a thousandth: each drawn level lies within one step of the scheduler's own.
    torch.testing.assert_close(sigmas, scheduler.sigmas, atol=0.006, rtol=0)
