"""Every architecture's images are those of diffusers' own pipeline, whatever its checkpoint's configurations say."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType
from diffusers import UNet2DConditionModel
from PIL import Image

from testing.tiny_models import SIZE, TOKENS, sd_pipeline, sdxl_pipeline
from tests.workers.samples import family, image_request, variant
from weir.core import ImageSize, Overrides
from weir.plan import HEAVY, LIGHT
from weir.prompts import parsed
from workers.engine.engine import DenoiseJob, EngineOutput, denoise_job
from workers.engine.samplers import scheduler_for
from workers.models.architectures.prompt_windows import MOST_WINDOWS
from workers.models.architectures.registry import ARCHITECTURES, adapt
from workers.models.family import Family

KINDS = pytest.mark.parametrize("kind", [sd_pipeline, sdxl_pipeline], ids=["sd", "sdxl"])
STATISTICS = {"latents_mean": [0.3, -0.2, 0.1, 0.5], "latents_std": [1.5, 0.7, 2.0, 1.1]}
STEPS, GUIDANCE = 3, 2.0
SQUARE, WIDE, TALL = ImageSize(SIZE, SIZE), ImageSize(2 * SIZE, SIZE), ImageSize(SIZE, 3 * SIZE // 2)
NARROW = ImageSize(SIZE + 8, 3 * SIZE)


def engine(pipeline: Any, scheduler: Any = "ddim") -> Family:
    pipeline.scheduler = scheduler_for(scheduler, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    heavy = {"steps": STEPS, "guidance": GUIDANCE, "scheduler": scheduler}
    light = heavy | {"steps": 2, "guidance": 0}
    config = family("-", variant("l", **light), variant("h", **heavy), sizes=(WIDE, TALL, NARROW))
    return Family(config, dict.fromkeys((LIGHT, HEAVY), pipeline))


def difference(made: Family, size: ImageSize = SQUARE, key: str = HEAVY) -> float:
    """Largest difference of a pixel (0…255) between the engine's image and diffusers'."""
    own = made.config.variants[key]
    shape = 1, 4, size.height // 2, size.width // 2
    whole = size._asdict() | {"num_inference_steps": own.steps, "guidance_scale": own.guidance, "output_type": "np"}
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    theirs = made.pipelines[key](prompt="a red a", negative_prompt="blur", latents=latents, **whole).images[0]
    [output] = made.generate(key, [image_request(negative_prompt="blur", size=size)])
    assert output.error is None
    assert theirs.shape == (size.height, size.width, 3)
    return float(np.abs(np.asarray(Image.open(io.BytesIO(output.image)), float) - theirs * 255).max())


@KINDS
@pytest.mark.parametrize("key", [LIGHT, HEAVY])
@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL, NARROW], ids=str)
def test_an_image_of_any_shape_is_that_of_diffusers(kind: Callable[[], Any], size: ImageSize, key: str) -> None:
    """SDXL's conditions on sizes, too, are those of diffusers: a wrong one changes the image."""
    assert difference(engine(kind()), size, key) <= 1


def test_images_of_sdxl_depend_on_the_order_of_width_and_height_in_its_size_conditions() -> None:
    made = engine(sdxl_pipeline())
    swapped = sdxl_pipeline()
    adapter = made._adapters[HEAVY]
    conditions = adapter.conditions

    def transposed(text: Any, recipe: Any) -> Any:
        return conditions(text, recipe._replace(size=ImageSize(recipe.size.height, recipe.size.width)))

    adapter.conditions = transposed  # type: ignore[method-assign]
    assert difference(made, WIDE) > 1
    assert difference(engine(swapped), WIDE) <= 1


@KINDS
@pytest.mark.parametrize(
    "config",
    [
        STATISTICS,
        {"latents_mean": STATISTICS["latents_mean"]},
        {"latents_std": STATISTICS["latents_std"]},
        {"shift_factor": 0.6},
        {"scaling_factor": 0.4},
        STATISTICS | {"scaling_factor": 0.5},
    ],
    ids="+".join,
)
def test_latents_are_decoded_as_the_vaes_configuration_says(kind: Callable[[], Any], config: dict[str, Any]) -> None:
    pipeline = kind()
    pipeline.vae.register_to_config(**config)
    assert difference(engine(pipeline)) <= 1


def test_the_statistics_of_the_latents_change_an_image_of_sdxl() -> None:
    plain, normalized = sdxl_pipeline(), sdxl_pipeline()
    normalized.vae.register_to_config(**STATISTICS)
    images = [engine(it).generate(HEAVY, [image_request()])[0].image for it in (plain, normalized)]
    assert images[0] != images[1]


@KINDS
@pytest.mark.parametrize(
    "config",
    [
        {"time_cond_proj_dim": 16},
        {"resnet_time_scale_shift": "scale_shift"},
        {"time_embedding_type": "fourier"},
        {"conv_in_kernel": 5},
    ],
    ids="+".join,
)
def test_a_denoiser_is_called_as_its_configuration_says(kind: Callable[[], Any], config: dict[str, Any]) -> None:
    pipeline = kind()
    torch.manual_seed(5)
    denoiser = UNet2DConditionModel.from_config({**pipeline.unet.config, **config}).eval()
    pipeline.register_modules(unet=denoiser)
    assert difference(engine(pipeline)) <= 1


@KINDS
@pytest.mark.parametrize(
    ("scheduler", "spacing"), [("euler", "linspace"), ("euler-trailing", "trailing"), ("ddim", "leading")]
)
def test_noise_is_predicted_with_zero_terminal_snr_where_diffusers_can(
    kind: Callable[[], Any], scheduler: str, spacing: str
) -> None:
    pipeline = kind()
    zero_snr = {"rescale_betas_zero_snr": True, "prediction_type": "epsilon", "timestep_spacing": spacing}
    pipeline.scheduler = scheduler_for("ddim", {**pipeline.scheduler.config, **zero_snr})
    assert difference(engine(pipeline, scheduler)) <= 1


def test_an_empty_negative_prompt_is_encoded_where_the_pipeline_has_no_zeros_for_it() -> None:
    pipeline = sdxl_pipeline()
    assert adapt(pipeline).zeros_for_no_negative
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert not adapt(pipeline).zeros_for_no_negative
    assert difference(engine(pipeline)) <= 1


def test_each_architecture_is_found_by_diffusers_name_of_its_pipeline() -> None:
    for kind in (sd_pipeline, sdxl_pipeline):
        pipeline = kind()
        assert type(adapt(pipeline)) is ARCHITECTURES[type(pipeline).__name__]


# ------------------------------------------------------------------------------------------------ prompts


def generated(**fields: Any) -> EngineOutput:
    return engine(sdxl_pipeline()).generate(HEAVY, [image_request(**fields)])[0]


WINDOW = TOKENS - 2  # the first and the last token mark begin and end
LONG = "x" * WINDOW + "y" * WINDOW + "z" * 5


def pieces(made: Family, parts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The encodings of texts by diffusers, one after the other, and the pooled encoding of the first one."""
    pipeline = made.pipelines[HEAVY]
    how = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.inference_mode():
        encoded = [pipeline.encode_prompt(it, **how) for it in parts]
    pooled = encoded[0][2] if len(encoded[0]) > 2 else None
    return torch.cat([it[0] for it in encoded], 1), pooled


@KINDS
@pytest.mark.parametrize(
    ("prompt", "negative", "parts", "negatives"),
    [
        (LONG, "blur", ["x" * WINDOW, "y" * WINDOW, "z" * 5], ["blur", "", ""]),
        ("a red a", LONG, ["a red a", "", ""], ["x" * WINDOW, "y" * WINDOW, "z" * 5]),
        ("aaa " * 10 + "bb", "blur", ["aaa " * 10, "bb"], ["blur", ""]),
        ("aaaa " * 8, "blur", ["aaaa " * 7, "aaaa"], ["blur", ""]),  # a word is not split between windows
    ],
    ids=["prompt", "negative prompt", "full windows", "between words"],
)
def test_a_long_prompt_is_encoded_in_windows(
    kind: Callable[[], Any], prompt: str, negative: str, parts: list[str], negatives: list[str]
) -> None:
    made = engine(kind())
    latents = torch.randn((1, 4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))
    (embeds, pooled), (negative_embeds, negative_pooled) = pieces(made, parts), pieces(made, negatives)
    pools = {} if pooled is None else dict(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=negative_pooled)
    theirs = made.pipelines[HEAVY](
        prompt_embeds=embeds,
        negative_prompt_embeds=negative_embeds,
        **pools,
        latents=latents,
        height=SIZE,
        width=SIZE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
    ).images[0]
    [output] = made.generate(HEAVY, [image_request(prompt=prompt, negative_prompt=negative)])
    image = np.asarray(Image.open(io.BytesIO(output.image)), float)
    assert float(np.abs(image - theirs * 255).max()) <= 1
    assert (output.unused_tokens, output.unused_negative_tokens) == (0, 0)


@KINDS
def test_prompts_of_different_lengths_share_calls_and_do_not_change_each_other(kind: Callable[[], Any]) -> None:
    made = engine(kind())
    requests = [image_request(str(i), prompt=it) for i, it in enumerate(["short", LONG, "x" * (WINDOW + 1)])]
    jobs = [denoise_job(made.config, HEAVY, it) for it in requests]
    assert len({made.call_of(it) for it in jobs}) == 1

    def latents(together: list[DenoiseJob]) -> list[torch.Tensor]:
        samples: list[Any] = made.begin(together)
        for _ in range(STEPS):
            made.step(samples)
        return [it.latent for it in samples]

    for shared, job in zip(latents(jobs), jobs, strict=True):
        [alone] = latents([job])
        assert float((shared - alone).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("prompt", "unused"),
    [
        ("x" * WINDOW * MOST_WINDOWS, 0),
        ("x" * (WINDOW * MOST_WINDOWS + 1), 1),
        ("ö" * WINDOW * MOST_WINDOWS, WINDOW * MOST_WINDOWS),  # two bytes each
        ("", 0),
    ],
    ids=lambda it: str(len(it)) if isinstance(it, str) else "",
)
@KINDS
def test_the_tokens_that_do_not_fit_the_windows_are_counted(kind: Callable[[], Any], prompt: str, unused: int) -> None:
    [output] = engine(kind()).generate(HEAVY, [image_request(prompt=prompt)])
    assert output.error is None
    assert (output.unused_tokens, output.unused_negative_tokens) == (unused, 0)


WEIGHTED = ["a (red:1.3) b", "(xy:0.5) and [z]", "(gone:0) here", "((k:1.2) l:0.9)", "plain"]


def by_compel(pipeline: Any, prompt: str) -> torch.Tensor:
    """The states of a prompt's tokens by compel, from the same parts."""
    sdxl = hasattr(pipeline, "text_encoder_2")
    kind = "PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED" if sdxl else "LAST_HIDDEN_STATES_NORMALIZED"
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")][: 2 if sdxl else 1]
    parts = parsed(prompt, "weighted")
    with torch.inference_mode():
        states = [
            EmbeddingsProvider(
                getattr(pipeline, words),
                getattr(pipeline, encoder),
                returned_embeddings_type=ReturnedEmbeddingsType[kind],
            ).get_embeddings_for_weighted_prompt_fragments([[it.text for it in parts]], [[it.weight for it in parts]])
            for words, encoder in names
        ]
    return torch.cat(states, -1)[0]


@KINDS
def test_weights_of_a_prompts_parts_are_those_of_compel_also_when_prompts_are_encoded_together(
    kind: Callable[[], Any],
) -> None:
    pipeline = kind()
    with torch.inference_mode():
        texts = adapt(pipeline).encode([parsed(it, "weighted") for it in WEIGHTED])
    for prompt, text in zip(WEIGHTED, texts, strict=True):
        states = text.tensors["encoder_hidden_states"]
        assert float((states - by_compel(pipeline, prompt)).abs().max()) < 1e-5


@KINDS
def test_the_parts_of_a_long_prompt_have_their_weights_in_every_window(kind: Callable[[], Any]) -> None:
    pipeline, words = kind(), "aaa " * 10
    with torch.inference_mode():
        long, *windows = adapt(pipeline).encode(
            [parsed(f"({words}{words}:1.5)", "weighted"), *[parsed(f"({words}:1.5)", "weighted")] * 2]
        )
    states = torch.cat([it.tensors["encoder_hidden_states"] for it in windows])
    assert float((long.tensors["encoder_hidden_states"] - states).abs().max()) < 1e-5


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_weights_change_the_image_by_the_syntax_that_has_them(field: str) -> None:
    texts = {"prompt": "a circle", "negative_prompt": "blur"}
    images = {
        (text, syntax): generated(**{**texts, field: text}, prompt_syntax=syntax).image
        for text in (texts[field], f"({texts[field]}:1.5)")
        for syntax in ("plain", "weighted")
    }
    assert images[texts[field], "plain"] == images[texts[field], "weighted"]
    assert len({*images.values()}) == 3


def test_a_judge_reads_a_weighted_prompt_without_its_parentheses() -> None:
    read: list[str] = []

    class Judge:
        def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
            read.extend(prompts)
            return [0.5] * len(prompts)

    made = engine(sdxl_pipeline())
    judged = Family(made.config, made.pipelines, dict.fromkeys(made.pipelines, Judge()))
    for syntax in ("plain", "weighted"):
        judged.generate(LIGHT, [image_request(prompt=r"a (red:1.3) circle \(small\)", prompt_syntax=syntax)])
    assert read == [r"a (red:1.3) circle \(small\)", "a red circle (small)"]


def test_prompts_that_differ_only_at_their_ends_give_different_images() -> None:
    assert generated(prompt="x" * 200 + "circle").image != generated(prompt="x" * 200 + "square").image


def test_a_negative_prompt_counts_where_it_is_used() -> None:
    long = "y" * (WINDOW * MOST_WINDOWS + 3)
    assert generated(negative_prompt=long).unused_negative_tokens == 3
    assert generated(negative_prompt=long, overrides=Overrides(guidance=1.0)).unused_negative_tokens == 0
