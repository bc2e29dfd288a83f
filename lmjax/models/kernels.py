"""Which kernel computes attention, and the flash kernels (arXiv 2205.14135): cuDNN's on GPUs, splash on TPUs.

    choice = choose(Backend("gpu", "9.0"), config.model, sees)    # Choice("cudnn", "causal")
    out = cudnn(q, k, v, sees, scale)

The plain kernel, `lmjax.models.attention.attend`, writes the scores [B, H, T, S] to memory; flash kernels do not.

B batch, T query time, S key time, H query heads, G key/value heads, K head dim.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lmjax.defaults import ROWS
from lmjax.errors import InputError
from lmjax.losses import time_parts
from lmjax.masks import Sees, segment_mask

FLASH = {"gpu": "cudnn", "tpu": "splash"}  # the flash kernel of each platform
TILE = 128  # lengths are multiples of it: splash always, cudnn with a mask or a position bias
SPLASH_BLOCKS = (512, 256, 128)  # queries and keys of a block; the largest that divides the length


class Backend(NamedTuple):
    """What the choice of a kernel depends on besides the model.

    Attributes:
        platform: cpu | gpu | tpu.
        capability: compute capability of an NVIDIA GPU, e.g. "9.0".
        head_shards: devices that heads are split over (mesh.tensor).
        attention: config.mesh.attention.
        stacked: True where several runs share a program by jax.vmap.
        context: devices that the tokens of a row are split over (mesh.context).
    """

    platform: str = "cpu"
    capability: str = ""
    head_shards: int = 1
    attention: str = "auto"
    stacked: bool = False
    context: int = 1


class Choice(NamedTuple):
    """A kernel, and what it computes or the reason why it is not a flash kernel."""

    kernel: str  # plain | cudnn | splash
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel} ({self.reason})"


def backend(mesh: Mesh, attention: str, stacked: bool = False) -> Backend:
    """Returns the backend of a mesh; `attention` is config.mesh.attention."""
    device = mesh.devices.flat[0]
    capability = str(getattr(device, "compute_capability", ""))
    return Backend(device.platform, capability, mesh.shape["tensor"], attention, stacked, mesh.shape["context"])


def choose(backend: Backend, model: Mapping[str, Any], sees: Sees) -> Choice:
    """Returns the attention kernel of a layer: the flash kernel of the platform where it can run, else plain.

    Args:
        backend: the devices, and config.mesh.attention.
        model: a resolved model section; dtype, head_dim, num_heads, num_kv_heads and attention_softcap are read.
        sees: what queries see; of its arrays only which ones exist is read.

    Example: (gpu, bfloat16, causal, 1024 tokens) -> cudnn (causal); the same with a key/value cache -> plain.
    """
    flash, wanted = FLASH.get(backend.platform), backend.attention
    if wanted == "plain":
        return Choice("plain", "mesh.attention is plain")
    if wanted not in ("auto", flash):
        return Choice("plain", f"{wanted} does not run on {backend.platform}")
    if flash is None:
        return Choice("plain", f"no flash kernel for {backend.platform}")
    if sees.positions is not None:
        return Choice("plain", "key/value cache")
    if backend.context > 1:
        return Choice("plain", f"{flash} does not take a part of a row's queries, as mesh.context gives it")
    if model["dtype"] != "bfloat16":
        return Choice("plain", f"{flash} needs model.dtype bfloat16, not {model['dtype']}")
    if model["num_heads"] % backend.head_shards or model["num_kv_heads"] % backend.head_shards:
        return Choice("plain", f"heads do not divide evenly over mesh.tensor {backend.head_shards}")
    if model["attention_softcap"] and flash == "cudnn":
        return Choice("plain", "cudnn has no cap on the scores (model.attention_softcap)")
    if limit := (_cudnn_limit if flash == "cudnn" else _splash_limit)(backend, model["head_dim"], sees):
        return Choice("plain", limit)
    parts = {"window": sees.window, "segments": sees.query_segments, "prefix": sees.prefix, "position bias": sees.bias}
    return Choice(flash, ", ".join([sees.kind, *(name for name, x in parts.items() if x is not None)]))


def _cudnn_limit(backend, head_dim, sees):
    """Why cuDNN cannot run, or "". The constraints are those of jax 0.10 (jax/_src/cudnn/fused_attention_stablehlo.py)
    and of open issues: jax-ml/jax#28974, #36702, pytorch/pytorch#196678 (NaN gradients at lengths off 128)."""
    if not backend.capability.replace(".", "").isdigit():
        return "cudnn needs an NVIDIA GPU"
    capability = tuple(map(int, backend.capability.split(".")))
    if capability < (8, 0):
        return f"cudnn needs compute capability 8.0 or above, not {backend.capability}"
    widest = 256 if capability >= (9, 0) else 128
    if head_dim % 8 or head_dim > widest:
        return f"cudnn needs a head_dim that is a multiple of 8 up to {widest}, not {head_dim}"
    masked = sees.masked or (sees.window is not None and (sees.kind == "full" or sees.bias is not None))
    if masked and sees.bias is not None:
        return "cudnn would write a position bias with a mask as [B, H, T, S]"
    if masked or sees.bias is not None:
        if sees.queries % TILE or sees.keys % TILE:
            return f"cudnn with a mask or position bias needs lengths in multiples of {TILE}, not {_lengths(sees)}"
        if backend.stacked:
            return "cudnn with a mask or position bias does not support jax.vmap"
    return ""


def _splash_limit(backend, head_dim, sees):
    """Why splash cannot run, or "". Head widths of 8 to 64 were compiled for a TPU v5e."""
    if sees.bias is not None:
        return "splash has no position bias"
    if sees.prefix is not None:
        return "splash has no prefix that differs between rows"
    if head_dim % 8:
        return f"splash needs a head_dim that is a multiple of 8, not {head_dim}"
    if sees.queries % TILE or sees.keys % TILE:
        return f"splash needs lengths in multiples of {TILE}, not {_lengths(sees)}"
    return ""


def _lengths(sees):
    return f"{sees.queries}" if sees.queries == sees.keys else f"{sees.queries} and {sees.keys}"


def check(backend: Backend, choices: Mapping[str, Choice]) -> None:
    """Raise InputError if config.mesh.attention names a kernel that a layer cannot use.

    Args:
        backend: with the key's value.
        choices: by layer, from `choose`.
    """
    for layer, choice in choices.items():
        if backend.attention not in ("auto", choice.kernel):
            raise InputError(
                f"mesh.attention: expected {backend.attention} in all layers, got {choice.kernel} in the {layer}: "
                f"{choice.reason}; change that, or set mesh.attention=auto to use {backend.attention} where it can run"
            )


def report(choices: Mapping[str, Choice]) -> str:
    """Returns the choices as text, once where all layers have the same.

    Example: "decoder cudnn (causal); encoder cudnn (full); cross-attention cudnn (full)"
    """
    if not choices:
        return "none"
    if len(set(choices.values())) == 1:
        return str(next(iter(choices.values())))
    return "; ".join(f"{layer} {choice}" for layer, choice in choices.items())


def cudnn(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    sees: Sees,
    scale: float,
    implementation: str = "cudnn",
) -> jax.Array:
    """Attention by cuDNN through jax.nn.dot_product_attention. Arguments and result as for `attention.attend`.

    Args:
        q_BTHK, k_BGSK, v_BGSK: bfloat16.
        sees: what queries see.
        scale: factor on the scores.
        implementation: "xla" computes the same call on any platform, for tests.
    """
    causal = sees.kind == "causal" and sees.prefix is None  # cuDNN skips the blocks above the diagonal
    mask = segment_mask(sees.query_segments, sees.key_segments) if causal else sees.mask()
    window = None
    if sees.window is not None:  # cuDNN skips the blocks outside of a causal window, if there is no other mask
        window = (sees.window - 1, 0) if causal and not sees.masked else None
        mask = sees.mask() if window is None else None
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, sees.queries, sees.keys))
    # A float32 bias gives NaN gradients (jax-ml/jax#32242).
    bias = None if sees.bias is None else sees.bias.astype(q_BTHK.dtype)
    k_BSGK, v_BSGK = k_BGSK.swapaxes(1, 2), v_BGSK.swapaxes(1, 2)
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        bias,
        mask,
        scale=scale,
        is_causal=causal,
        local_window_size=window,
        implementation=implementation,
    )


def splash(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    sees: Sees,
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention by the Pallas kernel "splash" of jax. Arguments and result as for `cudnn`.

    A query of segment 0 (padding) sees padding instead of nothing; no output that counts depends on it.

    Args:
        softcap: cap on the scores, or None.
        interpret: run the kernel step by step on any platform, for tests.
    """
    # Imported where it is needed: Pallas takes a second to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    make_mask = splash_attention_mask.CausalMask if sees.kind == "causal" else splash_attention_mask.FullMask
    mask = make_mask((sees.queries, sees.keys))
    if sees.window is not None:
        ahead = 0 if sees.kind == "causal" else sees.window - 1
        mask = splash_attention_mask.LocalMask(mask.shape, (sees.window - 1, ahead), offset=0)
    heads = [mask] * q_BTHK.shape[2]
    bq, bk = (next(block for block in SPLASH_BLOCKS if n % block == 0) for n in (sees.queries, sees.keys))
    blocks = splash_attention_kernel.BlockSizes(
        block_q=bq,
        block_kv=bk,
        block_kv_compute=bk,
        block_q_dkv=bq,
        block_kv_dkv=bk,
        block_kv_dkv_compute=bk,
        block_q_dq=bq,
        block_kv_dq=bk,
    )
    kernel = splash_attention_kernel.make_splash_mha(
        mask=splash_attention_mask.MultiHeadMask(heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    segments = None
    if sees.query_segments is not None:
        segments = splash_attention_kernel.SegmentIds(sees.query_segments, sees.key_segments)
    q_BHTK = (q_BTHK * scale).swapaxes(1, 2)
    out_BHTK = cast(jax.Array, jax.vmap(kernel)(q_BHTK, k_BGSK, v_BGSK, segments))
    return out_BHTK.swapaxes(1, 2)


KERNELS = {"cudnn": cudnn, "splash": splash}


def on_context(attend: Callable, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Calls the plain kernel, attend(q, k, v, bias), on each device's part of the queries along the mesh axis context.

    Keys and values of the row are gathered, and scores are [B, H, T / context, S]. Queries that the axis does not
    divide are not split.
    """
    if time_parts(q.shape[1]) == 1:
        return attend(q, k, v, bias)
    queries, all_keys, scores = PartitionSpec(None, "context"), PartitionSpec(), PartitionSpec(None, None, "context")
    local = jax.shard_map(
        attend,
        in_specs=(queries, all_keys, all_keys, scores),
        out_specs=queries,
        axis_names={"context"},
        check_vma=False,
    )
    return local(q, k, v, bias)


def on_shards(kernel: Callable, q: jax.Array, k: jax.Array, v: jax.Array, sees: Sees, scale: float) -> jax.Array:
    """Calls a flash kernel once per device of the mesh in context, on its rows and heads.

    Rows are split over the mesh axes ROWS, heads over tensor: attention needs no other device's part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.axis_sizes) == 1:
        return kernel(q, k, v, sees, scale)
    rows = PartitionSpec(ROWS)
    heads_second, heads_third = PartitionSpec(*rows, "tensor"), PartitionSpec(*rows, None, "tensor")
    arrays = {name: rows for name in ("query_segments", "key_segments", "prefix") if getattr(sees, name) is not None}
    if sees.bias is not None:
        arrays["bias"] = PartitionSpec(None, "tensor")
    specs = (heads_third, heads_second, heads_second, dataclasses.replace(sees, **arrays))
    local = jax.shard_map(
        lambda q, k, v, sees: kernel(q, k, v, sees, scale), in_specs=specs, out_specs=heads_third, check_vma=False
    )
    return local(q, k, v, sees)
