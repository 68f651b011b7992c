"""Search in the few-shot pool: ColBERT, BM25 and their fusion."""
