"""The paper's ablations of DrasCLR in one table: no location, no regional term, experts, neighbours.

    python benchmarks/drasclr_ablations.py -i Dataset061_ChestCT -o DIR

Data, pretraining, probes and table are those of ``chest_disease.py``; in the same folder it does what is missing there.
"""

from chest_disease import CONDITIONAL, DRASCLR, HISTOGRAM, main

ENDINGS = ("", "_noLocation", "_noRegional", "_2experts", "_4experts", "_16experts", "_1neighbours", "_4neighbours")

if __name__ == "__main__":
    main((HISTOGRAM, CONDITIONAL, *(f"{DRASCLR}{ending}" for ending in ENDINGS)), __doc__)
