"""Fine-tune from several starts with several numbers of labels, and report what pretraining gains.

``settings`` (what is compared) -> ``splits`` and ``plan`` (which runs that makes) -> ``workspace`` (a dataset of links
to the preprocessed files) -> ``weights`` and ``runner`` (public commands, one a run) -> ``results`` -> ``report``.
"""
