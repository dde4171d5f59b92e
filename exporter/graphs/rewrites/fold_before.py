"""Fold operators that scale and shift the channels of a product's input into its weights and its bias."""

from __future__ import annotations

import onnx_ir as ir

from bench.core.arrays import Array
from exporter.graphs.rewrites.affine import Affine, affine_of
from exporter.graphs.rewrites.products import Product, is_small, product_of, replace_product
from exporter.graphs.rewrites.symbols import constant

# Decomposed activations and norms contain one of these, and at most three sums and products after it.
_INSIDE_FUSIONS = frozenset({"Erf", "Tanh", "Sigmoid", "Sqrt", "Reciprocal", "Pow"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_STEPS = 4


class FoldBeforePass(ir.passes.InPlacePass):
    """Fold Add, Sub, Mul, Div, Neg and BatchNormalization of constants before products into the products.

    Examples are (pixel - mean) / std and a BatchNormalization between a pool and a classifier. In int8,
    Sub, Div and BatchNormalization run in float, with a conversion on either side.

    A node is folded if

    1. only products with constant weights and bias read its result,
    2. its constants have one value for each input channel, and the tensor that it reads has these channels,
    3. it adds nothing, or no product is padded: zeros around the input of a convolution are not shifted,
       and the borders of a ConvTranspose sum fewer inputs,
    4. it is not the bias of the product before it, and
    5. it does not end an activation or a norm that ONNX Runtime may fuse into one operator, for example
       the last Mul of a decomposed GELU.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold all such nodes, the last of several first."""
        modified = False
        for node in reversed(list(model.graph)):
            found = _readers(node)
            if found is not None:
                affine, products = found
                for product in products:
                    weight, bias = _folded(product, affine)
                    replace_product(product, weight, bias, source=affine.source, end=product.last)
                model.graph.remove(affine.node, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)


def _readers(node: ir.Node) -> tuple[Affine, list[Product]] | None:
    """The node as scale and shift, with the products that read it; None if it cannot be folded."""
    if node.graph is None or not node.outputs or node.outputs[0].is_graph_output():
        return None
    uses = list(node.outputs[0].uses())
    if not uses or any(use.node.graph is not node.graph or use.idx for use in uses):
        return None
    products = [product_of(use.node) for use in uses]
    known = [product for product in products if product is not None and _reads_channels(product)]
    if len(known) < len(uses) or len({product.inputs for product in known}) > 1:
        return None
    affine = affine_of(node, known[0].inputs)
    if affine is None or not _keeps_shape(affine, known[0]) or _ends_fusion(node) or _is_bias(affine):
        return None
    if affine.shift.any() and any(product.padded for product in known):
        return None
    return (affine, known) if all(is_small(*_folded(product, affine)) for product in known) else None


def _folded(product: Product, affine: Affine) -> tuple[Array, Array]:
    """The weights and the bias of a product that reads the tensor before the node."""
    return product.scaled_inputs(affine.scale), product.bias + product.response(affine.shift)


def _reads_channels(product: Product) -> bool:
    """Whether the channels are on the axis that `Product.inputs` states."""
    transposed = product.node.attributes.get("transA") if product.kind == "Gemm" else None
    return transposed is None or not transposed.as_int()


def _keeps_shape(affine: Affine, product: Product) -> bool:
    """Whether the node computes as many channels as it reads, so its input is not broadcast."""
    if affine.node.op_type in {"BatchNormalization", "Neg"}:
        return True
    if any(content is not None and content.size == 1 for content in map(constant, affine.node.inputs)):
        return True
    shape, axis = affine.source.shape, -1 if product.inputs.last else 1
    return shape is not None and len(shape) > 1 and shape[axis] == product.inputs.channels


def _is_bias(affine: Affine) -> bool:
    """Whether the node adds a bias to the result of a product, at no cost."""
    maker = affine.source.producer()
    return affine.node.op_type == "Add" and maker is not None and product_of(maker) is not None


def _ends_fusion(node: ir.Node, steps: int = _STEPS) -> bool:
    """Whether a root, a power or an activation comes shortly before the node."""
    makers = [value.producer() for value in node.inputs if value is not None]
    return any(
        maker.op_type in _INSIDE_FUSIONS
        or (maker.op_type in _ARITHMETIC and steps > 1 and _ends_fusion(maker, steps - 1))
        for maker in makers
        if maker is not None
    )
