"""The 19 corruptions of CIFAR-C and ImageNet-C: published, generated, cached."""
