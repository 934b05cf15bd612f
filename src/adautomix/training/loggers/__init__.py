"""Where else the rows of `metrics.jsonl` go: TensorBoard, Weights & Biases, MLflow."""
