"""From unlabelled volumes to the Dice of two networks, with and without pretraining, by the commands that a user types.

``sources`` and ``own_data`` by its ``dataset_json`` (whose volumes), ``budget`` (how much) -> ``workflow`` (the steps)
-> ``commands`` (subprocesses of ``nnunet_alice`` and ``nnUNetv2_...`` with their logs). Nothing here trains or predicts
by itself.
"""
