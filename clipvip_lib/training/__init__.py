"""Training on one device or many: batches, one step, one loop; what the study and ``clipvip train`` both call."""
