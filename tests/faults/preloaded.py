"""Loads what a search loads, once for all searches that the tests begin in processes of their own."""

import mlflow.onnx  # noqa: F401
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch

import autocompress.cli
import autocompress.run
import autocompress.trackers.mlflow_store
import autocompress.trial  # noqa: F401

torch.set_num_threads(1)
