"""The model as the pruner needs it: spec, sparse layer, routing, reader and loading."""
