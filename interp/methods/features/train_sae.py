import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from interp import Unsuitable, sae, store, zoo
from interp.method import Paper, Range, Unset, fit
from interp.model import LanguageModel, Model, VisionModel
from interp.samples import ImageSet, TextSet
from interp.sites import Site
from interp.training import Spec, train

PAPER = Paper(
    "Bussmann, Bart and Leask, Patrick and Nanda, Neel",
    "BatchTopK Sparse Autoencoders",
    2024,
    "arXiv",
    "https://arxiv.org/abs/2412.06410",
)


def passes(model: Model, samples: int, **_: Any) -> tuple[float, float]:
    """A forward for each row of tokens, or image (of 49 positions, as most have), that gives the activations."""
    return (samples / (256 if isinstance(model, LanguageModel) else 49), 0)


@fit("Sparse autoencoder", PAPER, cost=passes)
def train_sae(
    model: Model,
    data: TextSet | ImageSet,
    *,
    site: Annotated[Site | None, Unset("the residual stream past the middle, or the last stage")] = None,
    target: Annotated[Site | None, Unset("the same site")] = None,
    architecture: Literal[
        "batchtopk", "topk", "matryoshka_batchtopk", "standard", "gated", "jumprelu", "abstopk", "matching_pursuit"
    ] = "batchtopk",
    d_sae: Annotated[int, Range(2, 131_072)] = 512,
    k: Annotated[float, Range(0.1, 4096)] = 12,
    samples: Annotated[int, Range(1024, 10**9)] = 200_000,
    lr: Annotated[float, Range(1e-6, 1)] = 3e-3,
    seed: int = 0,
) -> str:
    """Learn a dictionary of features whose few active ones add up to the activations at a site.

        f = act(s x W_enc + b_enc),    x_hat = (f W_dec + b_dec) / s,    s with E |s x|^2 = d
        minimise E |s x - s x_hat|^2 + what dead features explain of the error
        BatchTopK keeps the k n largest f of a batch of n; afterwards all f above one threshold

    By SAELens's trainer, in a process of its own and on the unchanged model. What was cancelled goes on from where it
    was when it is asked for again with the same settings, and what was done is not done again. Bricken et al. 2023
    (standard: ReLU and an L1 penalty), Gao et al. 2024 (TopK), Bussmann et al. 2024 (BatchTopK). With a target it is a
    transcoder (Dunefsky et al. 2024): x_hat is then of that site, and b_dec is not taken off x.

    Args:
        site: What is read.
        target: What a transcoder writes, for example mlp_out where the site is the input of that MLP.
        architecture: How sparsity is had.
        d_sae: Number of features.
        k: Active features per activation, for those with topk in their name.
        samples: Activations to train on, in all; the data is gone through as often as it takes.
        lr: Learning rate of Adam; it falls to 0 over the last half.
        seed: Number that fixes the first weights and the order of the data.

    Returns:
        The name of the SAE, as `interp.sae.load` and the lenses of features take it.

    Raises:
        Unsuitable: a site without a vector at each position, or data that can't serve.

    Assumes:
        Data like that on which the features will be looked at, and enough of it: from some hundred texts or images.

    Misleads:
        With little data features are memories of single texts. A low error does not make a feature one thing.
    """
    spec, folder = job(model, data, site, target, architecture, d_sae, k, samples, lr, seed)
    return sae.keep(train(spec, folder, "Training the SAE"), model)


def job(
    model: Model,
    data: TextSet | ImageSet,
    site: Site | None,
    target: Site | None,
    architecture: str,
    d_sae: int,
    k: float,
    samples: int,
    lr: float,
    seed: int,
) -> tuple[Spec, Path]:
    """What `train_sae` runs with these settings, and the folder in which it does: progress.jsonl there is its curve."""
    site = model.resolve(site or default_site(model))
    other = None if target is None or model.resolve(target) == site else str(model.resolve(target))
    place = store.folder() / "training"
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(data, TextSet) == isinstance(model, VisionModel):
        raise Unsuitable(f"{model.name} is trained on {'images' if isinstance(data, TextSet) else 'texts'}.")
    if isinstance(data, TextSet):
        given, named = data.texts, store.key_of(data.texts)
    else:
        given, named = _files(data, place / "images"), store.key_of([each.sha256 for each in data.images])
    settings = (str(site), other, architecture, d_sae, k, samples, lr, seed)
    spec = Spec(
        model=_source(model, place),
        digest=model.digest,
        site=str(site),
        target=other,
        data=given,
        architecture=architecture,
        d_sae=d_sae,
        k=k,
        samples=samples,
        lr=lr,
        seed=seed,
    )
    return (spec, place / store.key_of(model.digest, named, settings)[:16])


def default_site(model: Model) -> Site:
    """The residual stream past the middle of a transformer, the last stage of a convolutional network."""
    return Site("resid_post", model.layers // 2) if model.parts.blocks else Site("stage", model.layers - 1)


def _files(data: ImageSet, place: Path) -> tuple[str, ...]:
    place.mkdir(exist_ok=True)
    paths = [place / f"{each.sha256}.png" for each in data.images]
    for path, each in zip(paths, data.images, strict=True):
        if not path.exists():
            store._write(path, each.data)
    return tuple(map(str, paths))


def _source(model: Model, place: Path) -> str:
    """Where the other process finds these weights: on the shelf, or in a copy."""
    if model.name in zoo.shelf() and zoo.load(model.name).digest == model.digest:
        return model.name
    copy = place / "models" / model.digest[:16] / "".join(each if each.isalnum() else "-" for each in model.name)
    if not (copy / "config.json").exists():
        reader = model.tokenizer if isinstance(model, LanguageModel) else model.processor  # type: ignore[attr-defined]
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent) as new:
            reader.save_pretrained(new)
            model._network.save_pretrained(new)  # type: ignore[operator]
            shutil.copytree(new, f"{copy}.{os.getpid()}")
        os.replace(f"{copy}.{os.getpid()}", copy)
    return str(copy)
