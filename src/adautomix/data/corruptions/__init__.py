"""The 19 corruptions of CIFAR-C and ImageNet-C: published images, or generated and cached ones."""
