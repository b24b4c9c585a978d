"""Which operations a custom loss may use: the only way from a name on the wire to a function.

A graph names operations as torch.fx does when it traces a Python function (`torch.exp`, the method
`sum`, `operator.mul`). What is not in these tables is not run. They hold arithmetic, comparisons,
reductions, reshaping and indexing: functions of their arguments and of nothing else. Left out on
purpose are operations that change a tensor in place, draw random numbers, read memory that nobody
wrote, leave torch, or take time out of proportion to what they read (decompositions, convolutions).

Signatures are written as `loss_signatures.py` says.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkerlite_server.engine import loss_arithmetic as arithmetic
from tinkerlite_server.engine.loss_signatures import Operation, Room, operation

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "inplace": (False,),
    "out": (None,),
    "size_average": (None,),
    "_stacklevel": (3,),
    "requires_grad": (False,),
    "pin_memory": (False, None),
    "names": (None,),
    "sparse_grad": (False,),
    "non_blocking": (False, True),
    "copy": (False, True),
    "compute_mode": ("use_mm_for_euclid_dist_if_necessary",),
}
"""Parameters that torch.fx spells out, with the values under which an operation is still pure."""

_REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")
TEXTS: Mapping[str, tuple[str, ...]] = {
    "reduction": ("none", "mean", "sum", "batchmean"),
    "reduce": _REDUCTIONS,
    "rounding_mode": ("trunc", "floor"),
    "approximate": ("none", "tanh"),
    "mode": ("constant", "reflect", "replicate", "circular"),
    "p": ("fro",),
    "side": ("left", "right"),
    "interpolation": ("linear", "lower", "higher", "midpoint", "nearest"),
    "compute_mode": ("use_mm_for_euclid_dist_if_necessary",),
    "attribute": (*arithmetic.ATTRIBUTES, *arithmetic.FIELDS),
}
"""Parameters that are words, and the words."""

_MAKE = "| dtype? device? layout? pin_memory? requires_grad? out? names?"
_LIKE = "| dtype? device? layout? pin_memory? requires_grad? memory_format?"

# ---- torch.NAME, and the method of the same name ----

_BOTH: Mapping[str, str] = {
    "input": """
        abs absolute neg negative positive exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal
        sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh arcsin arccos arctan arcsinh arccosh
        arctanh sigmoid erf erfc erfinv lgamma digamma floor ceil trunc fix frac sign sgn signbit relu isnan
        isinf isfinite isposinf isneginf logical_not bitwise_not sinc i0 deg2rad rad2deg detach t adjoint
        ravel fliplr flipud trace msort numel is_floating_point hardshrink""",
    "input other": """
        eq ne lt le gt ge less less_equal greater greater_equal not_equal maximum minimum fmax fmin atan2
        arctan2 hypot copysign nextafter logaddexp logaddexp2 logical_and logical_or logical_xor bitwise_and
        bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift xlogy floor_divide fmod remainder gcd
        lcm ldexp true_divide mul multiply vdot inner kron matmul""",
    "input other | alpha?": "add sub subtract",
    "input other | rounding_mode?": "div divide",
    "input other rtol? atol? equal_nan?": "isclose",
    "input exponent": "pow float_power",
    "input values": "heaviside",
    "input tensor": "dot",
    "input vec": "mv",
    "input vec2": "outer ger",
    "input mat2": "mm bmm",
    "input tensor1 tensor2 | value?": "addcmul addcdiv",
    "input end weight": "lerp",
    "input min? max?": "clamp clip",
    "input min": "clamp_min",
    "input max": "clamp_max",
    "input eps?": "logit",
    "input nan? posinf? neginf?": "nan_to_num",
    "input | decimals?": "round",
    "input | memory_format?": "clone",
    # reductions
    "input dim? keepdim? | dtype?": "sum mean nansum nanmean prod",
    "input dim keepdim?": "logsumexp",
    "input dim? keepdim?": "amax amin argmax argmin all any median nanmedian mode",
    "input dim/other? keepdim?": "max min",
    "input dim/unbiased? unbiased? keepdim? | correction?": "std var",
    "input dim?": "count_nonzero squeeze",
    "input q dim? keepdim? | interpolation?": "quantile nanquantile",
    "input | dim? keepdim?": "aminmax",
    "input k dim? keepdim?": "kthvalue",
    "input dim | dtype?": "cumsum cumprod",
    "input dim": "cummax cummin logcumsumexp unsqueeze",
    "input dim dtype?": "softmax log_softmax",
    "input | dim? prepend? append?": "diff",
    "input other p?": "dist",
    # shapes
    "input dim0 dim1": "transpose swapaxes swapdims",
    "input source destination": "movedim moveaxis",
    "input start_dim? end_dim?": "flatten",
    "input dim sizes": "unflatten",
    "input size": "broadcast_to",
    "input shifts dims?": "roll",
    "input k? dims?": "rot90",
    "input diagonal?": "tril triu diag",
    "input offset? dim1? dim2?": "diagonal diag_embed",
    # indexing, sorting, counting
    "input dim start length": "narrow",
    "input dim index": "select index_select",
    "input dim index | sparse_grad?": "gather",
    "input index": "take",
    "input indices dim?": "take_along_dim",
    "input mask value": "masked_fill",
    "input mask source": "masked_scatter",
    "input dim index value": "index_fill",
    "input dim index source | alpha?": "index_add",
    "input dim index source": "index_copy",
    "input dim index source reduce | include_self?": "index_reduce",
    "input dim index src/value": "scatter",
    "input dim index src": "scatter_add",
    "input dim index src reduce | include_self?": "scatter_reduce",
    "input dim? descending? | stable?": "sort argsort",
    "input k dim? largest? sorted?": "topk",
    "input bins? min? max?": "histc",
}

# ---- torch.NAME alone ----

_TORCH: Mapping[str, str] = {
    "condition input/self other": "where",
    "input other | alpha?": "rsub",
    "input dim/unbiased? unbiased? keepdim? | correction?": "std_mean var_mean",
    "input shape": "reshape",
    "input dims": "permute tile flip",
    "tensors dim?": "cat concat concatenate stack",
    "tensors": "hstack vstack dstack column_stack row_stack",
    "sorted_sequence input/self | out_int32? right? side? sorter?": "searchsorted",
    "input boundaries | out_int32? right?": "bucketize",
    "elements test_elements | assume_unique? invert?": "isin",
    "x1 x2 dim? eps?": "cosine_similarity",
    "x1 x2 p? eps? keepdim?": "pairwise_distance",
    "input alpha?": "celu",
    f"input {_LIKE}": "zeros_like ones_like",
    f"input fill_value {_LIKE}": "full_like",
}

_MAKERS: Mapping[str, str] = {
    f"*size {_MAKE}": "zeros ones",
    f"size fill_value {_MAKE}": "full",
    f"start/end end? step? {_MAKE}": "arange",
    f"start end steps {_MAKE}": "linspace",
    f"n m? {_MAKE}": "eye",
}

# ---- methods alone ----

_METHODS: Mapping[str, str] = {
    "input": "nelement dim ndimension",
    "input | memory_format?": "float double half bfloat16 int long short byte char bool contiguous",
    "input other": "expand_as reshape_as view_as type_as",
    "input condition other": "where",
    "input *shape": "reshape",
    "input *size/dtype": "view",
    "input *size | implicit?": "expand",
    "input *repeats": "repeat",
    "input *dims": "permute tile flip",
    "input dim?": "size",
    "input dimension size step": "unfold",
    "input p? dim? keepdim? dtype?": "norm",
    f"input *size {_LIKE}": "new_zeros new_ones",
    f"input size fill_value {_LIKE}": "new_full",
}

# ---- torch.nn.functional, torch.special, torch.linalg, math ----

_LEGACY = "size_average? reduce?"
_FUNCTIONAL: Mapping[str, str] = {
    "input": "softsign tanhshrink logsigmoid",
    "input inplace?": "relu relu6 silu mish selu hardsigmoid hardswish",
    "input alpha? inplace?": "elu celu",
    "input negative_slope? inplace?": "leaky_relu",
    "input min_val? max_val? inplace?": "hardtanh",
    "input threshold value inplace?": "threshold",
    "input beta? threshold?": "softplus",
    "input lambd?": "softshrink",
    "input | approximate?": "gelu",
    "input dim?": "glu",
    "input dim? _stacklevel? dtype?": "softmax log_softmax softmin",
    f"input target {_LEGACY} reduction? weight?": "mse_loss l1_loss",
    f"input target {_LEGACY} reduction? beta?": "smooth_l1_loss",
    "input target reduction? delta? weight?": "huber_loss",
    f"input target {_LEGACY} reduction? log_target?": "kl_div",
    f"input target weight? {_LEGACY} reduction?": "binary_cross_entropy",
    f"input target weight? {_LEGACY} reduction? pos_weight?": "binary_cross_entropy_with_logits",
    "input target weight? size_average? ignore_index? reduce? reduction? label_smoothing?": ("cross_entropy"),
    "input target weight? size_average? ignore_index? reduce? reduction?": "nll_loss",
    "input target log_input? full? size_average? eps? reduce? reduction?": "poisson_nll_loss",
    f"input target {_LEGACY} reduction?": "soft_margin_loss",
    f"input1 input2 target margin? {_LEGACY} reduction?": "margin_ranking_loss",
    "input p? dim? eps? out?": "normalize",
    "input pad mode? value?": "pad",
    "x1 x2 dim? eps?": "cosine_similarity",
}

_SPECIAL: Mapping[str, str] = {
    "input/self": """
        expit entr erf erfc erfinv erfcx exp2 expm1 log1p gammaln digamma psi ndtr ndtri log_ndtr sinc i0 i0e
        i1 i1e""",
    "input/self | decimals?": "round",
    "input/self eps?": "logit",
    "input/self other": "xlogy xlog1py",
    "input/self dim keepdim?": "logsumexp",
    "input/self dim | dtype?": "softmax log_softmax",
}

_LINALG: Mapping[str, str] = {
    # Without `ord`: with it, the norm of a matrix would be a decomposition.
    "A/input | dim? keepdim? dtype? out?": "norm",
    "x/input ord? dim? keepdim? | dtype? out?": "vector_norm",
    "x y | dim? out?": "vecdot",
    "input other": "matmul",
}

_MATH: Mapping[str, str] = {
    "x": """
        sqrt exp exp2 expm1 log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh floor
        ceil trunc fabs isnan isinf isfinite erf erfc gamma lgamma degrees radians""",
    "x base?": "log",
    "x y": "pow atan2 fmod hypot copysign",
}

_OPERATORS: Mapping[str, str] = {
    "a": "neg pos abs invert",
    "a b": """
        add sub mul truediv floordiv mod pow matmul eq ne lt le gt ge and_ or_ xor lshift rshift getitem""",
}


_PRODUCTS = ("matmul", "mm", "bmm", "inner", "cdist")
_PAIRS = (
    *("dist", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "poisson_nll_loss"),
    *("margin_ranking_loss", "cosine_similarity", "pairwise_distance", "vecdot"),
)


def _table(source: Any, signatures: Mapping[str, str], **options: Any) -> dict[str, Operation]:
    """Operations by name, out of a module's attributes that are named here."""
    return {
        name: operation(
            signature,
            getattr(source, name),
            multiplies=name in _PRODUCTS,
            pairs=name in _PAIRS,
            **options,
        )
        for signature, names in signatures.items()
        for name in names.split()
    }


def _named(prefixes: Iterable[str], operations: Mapping[str, Operation]) -> dict[str, Operation]:
    return {f"{prefix}{name}": each for prefix in prefixes for name, each in operations.items()}


def _sized(signature: str, call: Callable[..., Any], room: Room) -> Operation:
    return operation(signature, call, room=room)


_BY_VALUE: Mapping[str, Operation] = {
    "masked_select": _sized("input mask", torch.masked_select, arithmetic.room_of_broadcast),
    "argwhere": _sized("input", torch.argwhere, arithmetic.room_of_places),
    "nonzero": _sized("input | as_tuple?", torch.nonzero, arithmetic.room_of_places),
    "repeat_interleave": _sized("input repeats dim?", torch.repeat_interleave, arithmetic.room_of_repeats),
    **{
        name: _sized(signature, getattr(torch, name), arithmetic.room_of_parts)
        for name, signature in (
            ("unbind", "input dim?"),
            ("chunk", "input chunks dim?"),
            ("split_with_sizes", "input split_sizes dim?"),
            ("split", "tensor/input split_size_or_sections dim?"),
        )
    },
    "bincount": _sized("input weights? minlength?", torch.bincount, arithmetic.room_of_bins),
}

_WHOLE: Mapping[str, Operation] = {
    "einsum": operation("equation *operands", arithmetic.einsum, multiplies=True),
    "tensordot": operation("a b dims? out?", torch.tensordot, multiplies=True),
    "split": _BY_VALUE["split"],
    "norm": operation("input p? dim? keepdim? out? dtype?", torch.norm),
    "cdist": operation("x1 x2 p? compute_mode?", torch.cdist, multiplies=True),
    "atleast_1d": operation("*tensors", torch.atleast_1d),
    "atleast_2d": operation("*tensors", torch.atleast_2d),
    "broadcast_tensors": operation("*tensors", torch.broadcast_tensors),
}
"""Of `torch.functional`: Python functions, which torch.fx records whole."""

_ONE_HOT = _sized("tensor/input/self num_classes?", F.one_hot, arithmetic.room_of_classes)
_FUNCTIONS = _table(F, _FUNCTIONAL)

_MATHEMATICS = {
    name: operation(signature, arithmetic.of_numbers(getattr(math, name)))
    for signature, names in _MATH.items()
    for name in names.split()
}
_OPERATIONS = {
    name: operation(
        signature, arithmetic.guarded(name, getattr(operator, name)), multiplies=name in _PRODUCTS
    )
    for signature, names in _OPERATORS.items()
    for name in names.split()
}

FUNCTIONS: Mapping[str, Operation] = {
    **_named(["torch."], _table(torch, _BOTH) | _table(torch, _TORCH) | _BY_VALUE),
    **_named(["torch."], _table(torch, _MAKERS, makes_tensor=True)),
    **_named(["torch.", "torch.functional."], _WHOLE),
    **_named(["torch.nn.functional."], _FUNCTIONS),
    **_named(["torch.nn.functional.", "torch._C._nn."], {"one_hot": _ONE_HOT}),
    **{f"torch._C._nn.{name}": _FUNCTIONS[name] for name in ("softplus", "softshrink", "gelu")},
    "torch._C._nn.log_sigmoid": _FUNCTIONS["logsigmoid"],
    "torch.nn.functional._threshold": _FUNCTIONS["threshold"],
    "torch.poisson_nll_loss": operation(
        "input target log_input full eps reduction", torch.poisson_nll_loss, pairs=True
    ),
    **_named(["torch.special.", "torch._C._special.special_"], _table(torch.special, _SPECIAL)),
    **_named(["torch.linalg.", "torch._C._linalg.linalg_"], _table(torch.linalg, _LINALG)),
    **_named(["math."], _MATHEMATICS),
    **_named(["operator."], _OPERATIONS),
    "getattr": operation("object attribute", arithmetic.attribute),
}
"""What `call_function` may name."""

_TENSOR_METHODS: Mapping[str, Operation] = {
    **_table(Tensor, _BOTH),
    **_table(Tensor, _METHODS),
    **_BY_VALUE,
    "split": _sized("input split_size dim?", Tensor.split, arithmetic.room_of_parts),
    "cpu": operation("input | memory_format?", arithmetic.stay),
    "to": operation("input *any | dtype? device? non_blocking? copy? memory_format?", Tensor.to),
    "type": operation("input dtype", Tensor.type),
}
METHODS: Mapping[str, Operation] = {
    **{name: replace(each, call=arithmetic.method(each.call)) for name, each in _TENSOR_METHODS.items()},
    "numel": operation("input", arithmetic.count),
}
"""What `call_method` may name; the first argument is the tensor."""

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    )
}
"""The dtypes that a graph may name."""

LAYOUTS: Mapping[str, torch.layout] = {"strided": torch.strided}
MEMORY_FORMATS: Mapping[str, torch.memory_format] = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
}

_REASONS: Mapping[str, str] = {
    "item": "leaves torch; keep every value as a tensor",
    "tolist": "leaves torch; keep every value as a tensor",
    "numpy": "leaves torch; keep every value as a tensor",
    "backward": "is the server's to call; return the loss",
    "empty": "reads memory that nobody wrote; use zeros",
    "empty_like": "reads memory that nobody wrote; use zeros_like",
    "new_empty": "reads memory that nobody wrote; use new_zeros",
}
_RANDOM = ("rand", "bernoulli", "multinomial", "normal", "dropout", "poisson", "gumbel", "exponential")


def why_not(target: str) -> str:
    """Why an operation that is in no table is not run, as far as its name tells."""
    name = target.rpartition(".")[2]
    if name in _REASONS:
        return _REASONS[name]
    if name.endswith("_") and not name.endswith("__"):
        return f"changes a tensor in place; use {name.rstrip('_')}"
    if any(name.startswith(word) or f"_{word}" in name for word in _RANDOM):
        return "draws random numbers; send them as an input of the loss"
    return "is not an operation that this server runs; docs/protocol.md says which are"
