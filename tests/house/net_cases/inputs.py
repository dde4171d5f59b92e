"""Write the inputs of the cases that are not recipes: checkpoints, a program, models and samples."""

import sys

import nets
import numpy as np
import onnx
import shapes
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

torch.manual_seed(0)
torch.set_num_threads(1)


def onnx_model(nodes, constants, shape, classes, feed="x"):
    """Build a model with one input and the class scores `y` as output."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(feed, TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_checkpoints():
    """Write the weights of a student and of a wider teacher, and a `.pt2` program."""
    save_file(dict(nets.Plain().state_dict()), "weights.safetensors")
    torch.save(nets.Plain(width=12).state_dict(), "teacher.pth")
    program = torch.export.export(nets.Twice().eval(), (torch.zeros(4, 1, 12, 12),))
    torch.export.save(program, "program.pt2")


def write_models():
    """Write models of one MatMul, of two with external weights, and of convolutions; and their samples."""
    generator = np.random.default_rng(5)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    one = onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": normal(16, 64)}, (16,), 64
    )
    onnx.save(one, "one.onnx")
    two = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="bend"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="second"),
    ]
    stack = onnx_model(two, {"w1": normal(64, 64), "w2": normal(64, 8)}, (64,), 8)
    onnx.save(stack, "stack.onnx", save_as_external_data=True, location="stack.onnx.data", size_threshold=0)
    convolutions = [
        helper.make_node("Conv", ["image", "w1"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="bend"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="two", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("MatMul", ["e", "w3"], ["y"], name="head"),
    ]
    weights = {"w1": normal(8, 1, 3, 3), "w2": normal(16, 8, 3, 3), "w3": normal(16, 3)}
    onnx.save(onnx_model(convolutions, weights, (1, 12, 12), 3, "image"), "pictures.onnx")
    np.savez("rows16.npz", x=normal(80, 16), labels=np.arange(80) % 64)
    np.savez("rows64.npz", x=normal(80, 64), labels=np.arange(80) % 8)
    for name, channels in (("grey", 1), ("color", 3)):
        split = shapes.load(channels=channels, size=12).calibration
        np.savez(f"{name}.npz", image=split.inputs["image"], labels=split.labels)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    write_checkpoints()
    write_models()
