"""The benchmarks' data: where it lies (`root`), fetching it (`pull`), whether it is whole (`verify`). No torch."""
