"""The network as an ONNX model, from uint8 pictures to the heads' outputs or to finished detections.

The graph is written node by node from the network's layers: that takes a moment where a tracing exporter takes many
seconds, needs the package onnx alone, keeps the layers' names, and says exactly which operators are in it. Whether it
computes what the network does is for `inference.engines.comparison` to find out.
"""

import json
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from data.config import RGB_MEANS
from inference.engines.packages import require
from ssd import CONV4_3
from utils.errors import InputError

LEAST_OPSET, OPSET = 13, 17  # the least that the graph can be written in; and what most runtimes of today read
PRODUCER = "ssd-pytorch"
INPUT = "pictures"
HEADS = ("loc", "conf")


def build_model(net, info, *, opset=OPSET, with_nms=False):
    """Write a network as an ONNX model with a dynamic batch.

    Its input is `pictures`, uint8 RGB [batch, S, S, 3]: resized, nothing else. Mean and the checkpoint's channel order
    are dealt with inside. Its outputs are those of `net.raw`, `loc` [batch, P, 4] and `conf` [batch, P, C] before
    softmax, and the constant `priors` [P, 4]; or, with_nms, what `net.detect` makes of them: `detections`
    [batch, C, top_k, 5], rows (score, x1, y1, x2, y2), corners as fractions, padded with zeros.

    Args:
        net: an SSD without BatchNorm (as load_network and `fuse` give it).
        info: its CheckpointInfo; class names and configuration go into the model's metadata, as JSON.
        opset: version of ONNX's operators.
        with_nms: decode, and suppress as net.detect is set up to.

    Returns:
        An onnx.ModelProto, float32.

    Raises:
        InputError: onnx isn't installed, or can't write that opset.
        ValueError: the network has layers that it can't write.
    """
    (onnx,) = require("onnx")
    newest = onnx.defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= newest:
        raise InputError(f"--opset {opset}: onnx {onnx.__version__} writes this network in {LEAST_OPSET} to {newest}")
    graph = Graph(onnx)
    loc, conf = add_heads(graph, add_input(graph, info.channel_order), net)
    graph.constant("priors", net.priors)
    batch, num_priors, classes = "batch", len(net.priors), net.num_classes
    if with_nms:
        add_detect(graph, loc, conf, "priors", net.detect, num_priors)
        outputs = {"detections": [batch, classes, net.detect.top_k, 5]}
    else:
        outputs = {"loc": [batch, num_priors, 4], "conf": [batch, num_priors, classes], "priors": [num_priors, 4]}
    model = graph.model({INPUT: [batch, net.size, net.size, 3]}, outputs, opset)
    onnx.helper.set_model_props(model, metadata(net, info, outputs))
    onnx.checker.check_model(model)
    return model


def metadata(net, info, outputs):
    """What a user of the model must know beside its weights: {key: text}, JSON where it isn't a word."""
    described = {
        "class_names": info.class_names,
        "config": asdict(info.config),
        "input": f"uint8 RGB [batch, {net.size}, {net.size}, 3], resized without keeping the aspect",
        "outputs": list(outputs),
        "width": info.width,
        "mAP": info.mAP,
        "mAP_on": info.mAP_on,
        "trained_with": info.trained_with,
    }
    if "detections" in outputs:
        settings = ("conf_thresh", "nms_thresh", "nms_top_k", "top_k")
        described["detect"] = {name: getattr(net.detect, name) for name in settings}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}


class Graph:
    """An ONNX graph in the making. Values go by name; a node's result is called as the node is."""

    def __init__(self, onnx):
        self.onnx = onnx
        self.nodes = []
        self.constants = {}

    def add(self, operator, *inputs, name, outputs=None, **attributes):
        """Add a node and return its result's name. Numbers among the inputs become constants."""
        inputs = [
            value if isinstance(value, str) else self.constant(f"{name}/{place}", value)
            for place, value in enumerate(inputs)
        ]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, outputs or [name], name=name, **attributes))
        return name

    def constant(self, name, value):
        """Add a tensor, an array, or what numpy makes one of; returns its name."""
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name

    def model(self, inputs, outputs, opset):
        """The ModelProto: inputs (uint8) and outputs (float32) are {name: shape}."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto
        graph = helper.make_graph(
            self.nodes,
            "SSD",
            [helper.make_tensor_value_info(name, kind.UINT8, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, kind.FLOAT, shape) for name, shape in outputs.items()],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets), producer_name=PRODUCER
        )


def add_input(graph, channel_order):
    """`data.transforms.to_input`: uint8 RGB [B, S, S, 3] -> float32 [B, 3, S, S], what the network is fed."""
    x = graph.add("Transpose", INPUT, name="input/channels_first", perm=[0, 3, 1, 2])
    x = graph.add("Cast", x, name="input/float", to=graph.onnx.TensorProto.FLOAT)
    x = graph.add("Sub", x, np.float32(RGB_MEANS).reshape(1, 3, 1, 1), name="input/minus_mean")
    if channel_order == "BGR":
        x = graph.add("Gather", x, np.int64([2, 1, 0]), name="input/bgr", axis=1)
    return x


def add_heads(graph, x, net):
    """`SSD.raw`: the names of loc [B, P, 4] and conf [B, P, C]."""
    sources = []
    for index, layer in enumerate(net.vgg):
        if index == CONV4_3:
            sources.append(add_l2norm(graph, x, net.L2Norm))
        x = add_layer(graph, x, layer, f"vgg.{index}")
    sources.append(x)
    for index, conv in enumerate(net.extras):
        x = graph.add("Relu", add_layer(graph, x, conv, f"extras.{index}"), name=f"extras.{index}/relu")
        if index % 2 == 1:
            sources.append(x)
    for name, heads, values in (("loc", net.loc, 4), ("conf", net.conf, net.num_classes)):
        parts = []
        for index, (head, source) in enumerate(zip(heads, sources, strict=True)):
            cells = add_layer(graph, source, head, f"{name}.{index}")
            cells = graph.add("Transpose", cells, name=f"{name}.{index}/cells_last", perm=[0, 2, 3, 1])
            parts.append(graph.add("Reshape", cells, np.int64([0, -1, values]), name=f"{name}.{index}/boxes"))
        graph.add("Concat", *parts, name=name, axis=1)
    return HEADS


def add_layer(graph, x, layer, name):
    """A convolution, a ReLU or a pooling; raises ValueError for anything else."""
    if type(layer) is nn.Conv2d:
        return graph.add(
            "Conv",
            x,
            graph.constant(f"{name}.weight", layer.weight),
            graph.constant(f"{name}.bias", layer.bias),
            name=name,
            kernel_shape=layer.kernel_size,
            strides=layer.stride,
            pads=layer.padding * 2,
            dilations=layer.dilation,
        )
    if type(layer) is nn.ReLU:
        return graph.add("Relu", x, name=name)
    if type(layer) is nn.MaxPool2d:
        window = {"kernel_shape": [layer.kernel_size] * 2, "strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
        return graph.add("MaxPool", x, name=name, ceil_mode=int(layer.ceil_mode), **window)
    raise ValueError(f"{name}: a {type(layer).__name__} can't be written as ONNX; fuse() the network first")


def add_l2norm(graph, x, layer):
    """`L2Norm`: each position to unit length over its channels, times a learned scale."""
    squares = graph.add("Mul", x, x, name="L2Norm/squares")
    total = graph.add("ReduceSum", squares, np.int64([1]), name="L2Norm/sum", keepdims=1)
    norm = graph.add("Add", graph.add("Sqrt", total, name="L2Norm/root"), np.float32(layer.eps), name="L2Norm/norm")
    scale = graph.constant("L2Norm.weight", layer.weight.view(1, -1, 1, 1))
    return graph.add("Mul", graph.add("Div", x, norm, name="L2Norm/unit"), scale, name="L2Norm")


def add_detect(graph, loc, conf, priors, detect, num_priors):
    """`Detect`: the name of `detections`, [B, C, top_k, 5].

    A row below stands for one class of one picture. Each enters the operator NonMaxSuppression as a picture of its own,
    with the nms_top_k best boxes of its class: the operator itself has no limit on what enters.

    Raises ValueError for a Detect that it can't write.
    """
    if detect.background_label != 0 or detect.keep_top_k is not None:
        raise ValueError("only a Detect with the background at 0 and without keep_top_k can be written as ONNX")
    classes, entering = detect.num_classes - 1, min(detect.nms_top_k, num_priors)
    scores = graph.add("Softmax", conf, name="detect/softmax", axis=-1)
    scores = graph.add("Transpose", scores, name="detect/classes_first", perm=[0, 2, 1])
    ends = np.int64([1]), np.int64([classes + 1]), np.int64([1])
    scores = graph.add("Slice", scores, *ends, name="detect/foreground")  # [B, C - 1, P]
    above = graph.add("Greater", scores, np.float32(detect.conf_thresh), name="detect/above_threshold")
    scores = graph.add("Where", above, scores, np.float32(0), name="detect/candidates")
    scores, prior = add_best(graph, scores, entering, "detect/best")

    prior = graph.add("Reshape", prior, np.int64([0, classes * entering]), name="detect/prior")  # [B, (C - 1) * K]
    chosen_loc = add_gather(graph, loc, prior, "detect/chosen_loc")
    chosen_prior = graph.add("Gather", priors, prior, name="detect/chosen_priors", axis=0)
    boxes = add_decode(graph, chosen_loc, chosen_prior, detect.variance)
    boxes = graph.add("Reshape", boxes, np.int64([-1, entering, 4]), name="detect/boxes")  # [rows, K, 4]
    scores = graph.add("Reshape", scores, np.int64([-1, entering]), name="detect/scores")  # [rows, K]

    kept = add_suppression(graph, boxes, scores, detect.nms_thresh, entering)
    left = min(detect.top_k, entering)
    scores, place = add_best(graph, kept, left, "detect/left")
    boxes = add_gather(graph, boxes, place, "detect/left_boxes")
    scores = graph.add("Unsqueeze", scores, np.int64([2]), name="detect/left_scores")
    full = graph.add("Greater", scores, np.float32(0), name="detect/full")
    boxes = graph.add("Where", full, boxes, np.float32(0), name="detect/zeros_in_empty_rows")
    rows = graph.add("Concat", scores, boxes, name="detect/rows", axis=2)
    rows = graph.add("Reshape", rows, np.int64([-1, classes, left, 5]), name="detect/of_pictures")
    padding = np.int64([0, 1, 0, 0, 0, 0, detect.top_k - left, 0])  # the background's rows in front
    return graph.add("Pad", rows, padding, name="detections")


def add_suppression(graph, boxes, scores, nms_thresh, entering):
    """The scores [rows, K] again, with 0 where a box was suppressed."""
    alone = graph.add("Unsqueeze", scores, np.int64([1]), name="detect/one_class")
    selected = graph.add(
        "NonMaxSuppression",
        boxes,
        alone,
        np.int64([entering]),
        np.float32([nms_thresh]),
        np.float32([0]),
        name="detect/nms",
    )  # [N, 3]: row, 0, place
    places = graph.add("Gather", selected, np.int64([0, 2]), name="detect/selected", axis=1)
    kept_scores = graph.add("GatherND", scores, places, name="detect/selected_scores")
    shape = graph.add("Shape", scores, name="detect/shape")
    zeros = graph.add("ConstantOfShape", shape, name="detect/none")
    return graph.add("ScatterND", zeros, places, kept_scores, name="detect/kept")


def add_best(graph, values, count, name):
    """The `count` largest of the last axis, and their places: two names."""
    graph.add("TopK", values, np.int64([count]), name=name, outputs=[f"{name}_values", f"{name}_places"], axis=-1)
    return f"{name}_values", f"{name}_places"


def add_gather(graph, values, places, name):
    """values [N, P, 4] at places [N, K]: the name of [N, K, 4]."""
    places = graph.add("Unsqueeze", places, np.int64([2]), name=f"{name}/places")
    return graph.add("GatherND", values, places, name=name, batch_dims=1)


def add_decode(graph, loc, priors, variance):
    """`decode`: offsets and centre-size priors, both [B, K, 4] -> corners."""
    offset, size = add_halves(graph, loc, "decode/loc")
    prior_centre, prior_size = add_halves(graph, priors, "decode/prior")
    offset = graph.add("Mul", offset, np.float32(variance[0]), name="decode/offset")
    offset = graph.add("Mul", offset, prior_size, name="decode/offset_of_prior")
    centre = graph.add("Add", prior_centre, offset, name="decode/centre")
    size = graph.add("Mul", size, np.float32(variance[1]), name="decode/log_size")
    size = graph.add("Mul", prior_size, graph.add("Exp", size, name="decode/factor"), name="decode/size")
    half = graph.add("Div", size, np.float32(2), name="decode/half_size")
    top_left = graph.add("Sub", centre, half, name="decode/top_left")
    return graph.add(
        "Concat", top_left, graph.add("Add", top_left, size, name="decode/bottom_right"), name="decode", axis=2
    )


def add_halves(graph, values, name):
    """The first two and the last two of the last axis, of 4: two names."""
    halves = [f"{name}_first", f"{name}_last"]
    graph.add("Split", values, np.int64([2, 2]), name=name, outputs=halves, axis=2)
    return halves
