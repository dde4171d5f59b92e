"""The operators that are known to do no multiply-adds, by domain.

An operator that is neither in this list nor has a formula in `inspection.macs` is reported as not counted.
Elementwise arithmetic, norms, pooling, interpolation and reductions are listed by convention. Linear models
and similar operators are not listed, because they multiply and add.
"""

from __future__ import annotations

from collections.abc import Mapping

# These operators run bodies, whose operators are counted separately.
CONTAINERS = frozenset({"If", "Loop", "Scan"})

_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum SwiGLU Swish Tan
    Tanh ThresholdedRelu Where Xor RotaryEmbedding
"""
_REDUCTIONS = """
    ArgMax ArgMin CumProd CumSum Hardmax LogSoftmax NegativeLogLikelihoodLoss ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Softmax SoftmaxCrossEntropyLoss
"""
_NORMS = """
    BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization
    MeanVarianceNormalization RMSNormalization SimplifiedLayerNormalization
"""
_POOLING = """
    AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxRoiPool MaxUnpool
"""
_INTERPOLATION = "GridSample Resize RoiAlign Upsample"
_CONVERSIONS = "BitCast Cast CastLike DequantizeLinear DynamicQuantizeLinear QuantizeLinear"
_MOVEMENT = """
    CenterCropPad Col2Im Compress Concat DepthToSpace Expand Flatten Gather GatherElements GatherND
    Identity NonZero OneHot Pad Reshape ReverseSequence Scatter ScatterElements ScatterND Slice
    SpaceToDepth Split Squeeze TensorScatter Tile TopK Transpose Trilu Unique Unsqueeze
"""
_MADE_UP = """
    Bernoulli BlackmanWindow Constant ConstantOfShape EyeLike HammingWindow HannWindow MelWeightMatrix
    Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Shape Size
"""
_SEQUENCES_AND_TEXT = """
    ConcatFromSequence Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence
    StringConcat StringNormalizer StringSplit TfIdfVectorizer
"""
_OTHERS = "Dropout ImageDecoder NonMaxSuppression"
_RUNTIME = """
    BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu BifurcationDetector BitmaskBiasDropout
    BitmaskDropout ComplexMul ComplexMulConj CropAndResize DequantizeBFP DequantizeLinear
    DynamicTimeWarping EmbedLayerNormalization ExpandDims FastGelu GatherBlockQuantized GatherND Gelu
    GemmaRotaryEmbedding GreedySearchTopK GridSample GroupNorm IsAllFinite MRotaryEmbedding
    MaxpoolWithMask MulInteger MurmurHash3 NGramRepeatBlock NhwcMaxPool Pad QEmbedLayerNormalization
    QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul
    QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeBFP QuantizeLinear QuickGelu
    Range ReduceSumInteger RelativePositionBias RemovePadding ReorderInput ReorderOutput RestorePadding
    RotaryEmbedding SampleOp ScaledSiLU SimplifiedLayerNormalization SkipGroupNorm
    SkipLayerNormalization SkipSimplifiedLayerNormalization Tokenizer TorchEmbedding Trilu UnfoldTensor
    Unique
"""
# Trees compare and add; the other operators look up, scale and select.
_CLASSICAL = """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer
    LabelEncoder Normalizer OneHotEncoder Scaler TreeEnsemble TreeEnsembleClassifier
    TreeEnsembleRegressor ZipMap
"""


def _names(*texts: str) -> frozenset[str]:
    return frozenset(name for text in texts for name in text.split())


_OF_ONNX = _names(
    _ELEMENTWISE, _REDUCTIONS, _NORMS, _POOLING, _INTERPOLATION, _CONVERSIONS, _MOVEMENT, _MADE_UP,
    _SEQUENCES_AND_TEXT, _OTHERS,
)  # fmt: skip
_OF_RUNTIME = _names(_RUNTIME) | _OF_ONNX

# Domain -> operators. ONNX Runtime's internal domains contain ONNX's operators in other layouts.
WITHOUT_MACS: Mapping[str, frozenset[str]] = {
    "": _OF_ONNX,
    "ai.onnx.ml": _names(_CLASSICAL),
    "com.microsoft": _OF_RUNTIME,
    "com.microsoft.nchwc": _OF_RUNTIME,
    "com.ms.internal.nhwc": _OF_RUNTIME,
}
