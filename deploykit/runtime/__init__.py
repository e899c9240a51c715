"""A bundle in production: `load` it, feed the `Classifier`, gather requests in a `MicroBatcher`.

Nothing here needs a tool chain: no torch, no onnx, no command line. Their home is `deploykit`
itself, which resolves them on first use.
"""
