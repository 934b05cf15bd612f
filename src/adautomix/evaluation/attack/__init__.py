"""The attack suite: accuracy under white-box attacks, each network by its own gradients.

The paper reports the error under FGSM with ε = 8/255. Its script adds ε to the *normalized* image
and clamps the sum to [0, 1], which is not an attack of size 8/255 in pixels. Here networks take
pixels in [0, 1] and normalize inside, so ε is measured in pixels.

- FGSM: Goodfellow, Shlens, Szegedy, *Explaining and Harnessing Adversarial Examples*, ICLR 2015.
- PGD: Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018.
- Signs of masked gradients: Athalye, Carlini, Wagner, *Obfuscated Gradients Give a False Sense of
  Security*, ICML 2018; Carlini et al., *On Evaluating Adversarial Robustness*, 2019.
"""

from adautomix.evaluation.attack.suite import SUITE

__all__ = ["SUITE"]
