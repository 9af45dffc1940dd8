import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the models are tiny, threads only add noise
os.environ.setdefault("HF_HUB_OFFLINE", "1")
