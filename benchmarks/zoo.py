"""Neuron pruning on the networks that people have: ``python benchmarks/zoo.py [NAME ...]``.

Every family of torchvision, a dozen of timm, transformers built from configurations (nothing is downloaded), a
U-Net and recurrent classifiers are pruned as called, at ratio 0.5, compacted, and compared with the masked network
in float64. Torch-Pruning does the same in the same run where it is installed. Inputs are small, and so are the
configurations of the largest families; each network has a process and a time of its own. Needs torchvision, timm and
transformers, and prints what is missing:

    pip install --no-deps --target zoo_site torchvision timm transformers torch-pruning huggingface_hub tokenizers \\
        safetensors regex tqdm pyyaml requests packaging filelock httpx2 httpcore2 truststore h11 certifi idna anyio
    PYTHONPATH=zoo_site python benchmarks/zoo.py

(whatever else an import asks for is a small Python package). torchvision beside a CPU build of torch needs two
operators declared before it is imported.
"""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import natal
from natal.pruning.graph.capture import arguments
from natal.pruning.savings import count

RATIO = 0.5
SECONDS = {"natal": 150, "peer": 30}
"""How long a tool may take for one network."""
Make = Callable[[], tuple[nn.Module, Any]]


def declare_operators() -> None:
    """Declare the two operators that torchvision registers shapes for, where its compiled library does not load."""
    library: Any = torch.library.Library(  # type: ignore[no-untyped-call]
        "torchvision", "DEF"
    )
    for line in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                 "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
        library.define(line)
    globals()["_library"] = library  # it lasts as long as the object


def image(size: int, rows: int = 2, channels: int = 3) -> Tensor:
    """Return random images."""
    return torch.randn(rows, channels, size, size, generator=torch.Generator().manual_seed(0))


def _built(make: Callable[[], nn.Module], size: int) -> tuple[nn.Module, Tensor]:
    return make(), image(size)


def torchvision_cases() -> Iterator[tuple[str, Make]]:
    """One network of every classification family, two of segmentation."""
    models = importlib.import_module("torchvision.models")
    families = {
        "alexnet": 224, "vgg11_bn": 64, "resnet18": 64, "resnet50": 64, "wide_resnet50_2": 64, "resnext50_32x4d": 64,
        "densenet121": 64, "googlenet": 96, "inception_v3": 160, "squeezenet1_1": 96, "mobilenet_v2": 64,
        "mobilenet_v3_small": 64, "mobilenet_v3_large": 64, "mnasnet1_0": 64, "shufflenet_v2_x1_0": 64,
        "efficientnet_b0": 64, "efficientnet_v2_s": 64, "regnet_y_400mf": 64, "regnet_x_400mf": 64, "convnext_tiny": 64,
    }  # fmt: skip
    small: dict[str, tuple[Any, int]] = {
        "VisionTransformer": (
            partial(models.VisionTransformer, 64, 16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128), 64),
        "SwinTransformer": (
            partial(models.SwinTransformer, [4, 4], 32, [2, 2], [4, 8], [4, 4], stochastic_depth_prob=0.0), 64),
        "SwinTransformer v2": (
            partial(models.SwinTransformer, [4, 4], 32, [2, 2], [4, 8], [4, 4], stochastic_depth_prob=0.0,
                    block=models.swin_transformer.SwinTransformerBlockV2,
                    downsample_layer=models.swin_transformer.PatchMergingV2), 64),
        "MaxVit": (
            partial(models.MaxVit, (64, 64), 16, 4, [32, 64], [1, 1], 16, stochastic_depth_prob=0.0), 64),
    }  # fmt: skip
    for name, size in families.items():
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield (
            f"torchvision {name}",
            partial(_built, partial(models.get_model, name, weights=None, **more), size),
        )
    for name, (make, size) in small.items():
        yield f"torchvision {name}", partial(_built, make, size)
    segmentation = importlib.import_module("torchvision.models.segmentation")
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large"):
        make = partial(getattr(segmentation, name), weights=None, weights_backbone=None)
        yield f"torchvision {name}", partial(_built, make, 64)


def timm_cases() -> Iterator[tuple[str, Make]]:
    """A dozen and more families of timm."""
    timm = importlib.import_module("timm")
    for name, size in {
        "resnet26d": 64, "seresnet18": 64, "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224,
        "mixer_s32_224": 224, "efficientnet_lite0": 64, "ghostnet_100": 64, "hardcorenas_a": 64,
        "res2net50_26w_4s": 64, "repvgg_a0": 64, "dla34": 64, "cspresnet50": 64,
        "poolformer_s12": 64, "convnextv2_atto": 64, "levit_128s": 224, "xcit_nano_12_p16_224": 224,
    }.items():  # fmt: skip
        yield f"timm {name}", partial(_built, partial(timm.create_model, name, pretrained=False), size)


def hub_cases() -> Iterator[tuple[str, Make]]:
    """Small transformers from their configurations."""
    t = importlib.import_module("transformers")
    tokens = torch.randint(2, 90, (2, 12), generator=torch.Generator().manual_seed(0))

    def made(kind: str, config: Any, **more: Any) -> Make:
        def make() -> tuple[nn.Module, Any]:
            return getattr(t, kind)(config), {"input_ids": tokens, **more}

        return make

    yield "hub BERT", made("BertForSequenceClassification", t.BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96))  # fmt: skip
    yield "hub GPT-2", made("GPT2LMHeadModel", t.GPT2Config(
        vocab_size=100, n_embd=48, n_layer=2, n_head=4, n_positions=32), use_cache=False)  # fmt: skip
    yield "hub Llama", made("LlamaForCausalLM", t.LlamaConfig(
        vocab_size=100, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2), use_cache=False)  # fmt: skip
    yield "hub T5", made("T5ForConditionalGeneration", t.T5Config(
        vocab_size=100, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0),
        decoder_input_ids=tokens, use_cache=False)  # fmt: skip
    yield "hub DistilBERT", made("DistilBertForSequenceClassification", t.DistilBertConfig(
        vocab_size=100, dim=48, n_layers=2, n_heads=4, hidden_dim=96))  # fmt: skip
    yield "hub ViT", lambda: (t.ViTForImageClassification(t.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8)),
        {"pixel_values": image(32)})  # fmt: skip


class UNet(nn.Module):
    """Two levels with skip connections that are concatenated, upsampling by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1),
                nn.BatchNorm2d(o),
                nn.ReLU(True),
                nn.Conv2d(o, o, 3, padding=1),
                nn.ReLU(),
            )

        self.a, self.b, self.c = block(3, 16), block(16, 32), block(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.d, self.e, self.head = block(64, 32), block(32, 16), nn.Conv2d(16, 4, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(self.pool(a))
        c = self.c(self.pool(b))
        d = self.d(torch.cat([self.up2(c), b], 1))
        y: Tensor = self.head(self.e(torch.cat([self.up1(d), a], 1)))
        return y


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, a classifier of two layers."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(50, 24), nn.Linear(24, 24)
        self.recurrent = kind(24, 32, batch_first=True)
        self.hidden, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.recurrent(torch.relu(self.inner(self.embed(x))))[0][:, -1]
        logits: Tensor = self.head(torch.relu(self.hidden(y)))
        return logits


def own_cases() -> Iterator[tuple[str, Make]]:
    """What torch alone builds."""
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    yield "U-Net", lambda: (UNet(), image(32))
    yield "LSTM classifier", lambda: (Recurrent(nn.LSTM), tokens)
    yield "GRU classifier", lambda: (Recurrent(nn.GRU), tokens)
    yield (
        "nn.TransformerEncoder",
        lambda: (
            nn.Sequential(
                nn.Linear(16, 32),
                nn.TransformerEncoder(
                    nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
                ),
                nn.Linear(32, 4),
            ),
            torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)),
        ),
    )


@dataclass
class Result:
    """What one tool made of one network: whether it ran, whether the function stayed, what was saved."""

    works: bool = False
    equal: bool | None = None
    parameters: float = 0.0
    work: float = 0.0
    seconds: float = 0.0
    said: str = ""


def run(net: nn.Module, example: Any) -> list[Tensor]:
    """Return all tensors that a network answers with."""
    args, kwargs = arguments(example)
    with torch.no_grad():
        out = net(*args, **kwargs)
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, tuple | list) else [out]
    return [v for v in values if isinstance(v, Tensor)]


def saved(before: nn.Module, after: nn.Module, example: Any) -> tuple[float, float]:
    """Return the shares of parameters and multiply-adds that went."""
    sizes = [sum(p.numel() for p in net.parameters()) for net in (before, after)]
    work = [count(copy.deepcopy(net).eval(), example).multiply_adds for net in (before, after)]
    return 1 - sizes[1] / sizes[0], 1 - work[1] / work[0]


def double(value: Any) -> Any:
    """Return tensors of an example in double precision."""
    if isinstance(value, Mapping):
        return {k: double(v) for k, v in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def with_natal(net: nn.Module, example: Any, renormalise: bool) -> Result:
    """Prune as called, compact, compare."""
    result, start = Result(), time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            mask = natal.prune(net, RATIO, "magnitude", "layerwise", "neuron", batch=(example, None))
            ticket = natal.apply(net, mask)
            small = natal.compact(ticket, mask)
            result.seconds = time.perf_counter() - start
            ticket, exact = copy.deepcopy(ticket).double(), copy.deepcopy(small).double()
            a, b = run(ticket, double(example)), run(exact, double(example))
            result.equal = all(
                torch.allclose(x, y, rtol=1e-5, atol=1e-5 * float(x.abs().max()))
                for x, y in zip(a, b, strict=True)
            )
            if renormalise:
                small = natal.compact(natal.apply(net, mask), mask, renormalise=True)
        result.works = True
        result.parameters, result.work = saved(net, small, example)
        result.said = "; ".join(
            str(w.message).splitlines()[0]
            for w in seen
            if "kept whole" in str(w.message) or "stay in place" in str(w.message)
        )
        if result.parameters <= 0.0:
            result.works, result.said = False, "nothing went: " + result.said
    except Exception as error:
        result.said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if os.environ.get("ZOO_TRACE"):
            import traceback

            traceback.print_exc()
    return result


def with_peer(net: nn.Module, example: Any) -> Result:
    """Do the same with Torch-Pruning, which does not compare."""
    result, start = Result(), time.perf_counter()
    try:
        tp = importlib.import_module("torch_pruning")
        twin = copy.deepcopy(net)
        linear = [m for m in twin.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        args, kwargs = arguments(example)
        inputs = kwargs or (args if len(args) > 1 else args[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.MagnitudePruner(
                twin, inputs, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=RATIO,
                ignored_layers=linear[-1:],
            )  # fmt: skip
            pruner.step()
            result.seconds = time.perf_counter() - start
            run(twin, example)
        result.parameters, result.work = saved(net, twin, example)
        result.works = result.parameters > 0
    except Exception as error:
        result.said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return result


def _answer(ends: Any, tool: str, make: Make) -> None:
    torch.manual_seed(0)
    net, example = make()
    net.eval()
    ends.send(with_natal(net, example, renormalise=True) if tool == "natal" else with_peer(net, example))


def alone(tool: str, make: Make) -> Result:
    """Let a tool try a network in a process of its own, for so long."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_answer, args=(theirs, tool, make))
    child.start()
    theirs.close()
    try:
        if ours.poll(SECONDS[tool]):
            result: Result = ours.recv()
            return result
        return Result(said=f"no answer in {SECONDS[tool]} s")
    except EOFError:
        return Result(said="its process ended")
    finally:
        child.kill()
        child.join()


def cases() -> Iterator[tuple[str, Make]]:
    """Every network whose library is installed."""
    declare_operators()
    for find in (own_cases, torchvision_cases, timm_cases, hub_cases):
        try:
            yield from find()
        except ImportError as error:
            print(f"left out: {find.__name__.removesuffix('_cases')} ({error})")


def main(names: list[str]) -> None:
    """Print the table, a line a network, and what it comes to."""
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, 1 thread; python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    print(f"ratio {RATIO}, magnitude, layerwise; equal: to the masked network, in float64")
    print(
        f"{'network':<34}{'natal':>7}{'equal':>7}{'param':>8}{'work':>8}{'s':>7}   "
        f"{'peer':>6}{'param':>8}{'work':>8}{'s':>7}"
    )
    rows: list[tuple[str, Result, Result]] = []
    for name, make in cases():
        if names and not any(n in name for n in names):
            continue
        ours, theirs = alone("natal", make), alone("peer", make)
        rows.append((name, ours, theirs))
        cells = [
            f"{'yes' if r.works else 'no':>6}" + (f"{'' if i else str(r.equal):>7}" if not i else "")
            + (f"{r.parameters:>8.1%}{r.work:>8.1%}{r.seconds:>7.1f}" if r.works else " " * 23)
            for i, r in enumerate((ours, theirs))
        ]  # fmt: skip
        print(f"{name:<34} {cells[0]}   {cells[1]}", flush=True)
        if ours.said:
            print(f"    natal: {ours.said[:400]}")
        if theirs.said:
            print(f"    peer: {theirs.said[:160]}")
    total = len(rows)
    good = sum(r.works and r.equal is True for _, r, _ in rows)
    wrong = sum(r.equal is False for _, r, _ in rows)
    both = [(r, p) for _, r, p in rows if r.works and p.works]
    near = sum(r.parameters > p.parameters - 0.03 and r.work > p.work - 0.03 for r, p in both)
    print(f"natal works as called and is equal on {good} of {total}, unequal on {wrong}; "
          f"the peer finishes on {sum(p.works for *_, p in rows)}; where both do, on {len(both)}, natal saves at least "
          f"as much but for 3 points on {near}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
