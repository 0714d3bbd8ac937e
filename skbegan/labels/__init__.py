"""Labels of batch and cell type: arrays, tables, small codes."""
