"""vlm4vla: what does a vision-language model bring to a robot policy?"""

__version__ = "0.1.0"
