"""A network as a file for other runtimes, checked in them: ONNX, OpenVINO, torch.export, AOTInductor, Core ML."""
