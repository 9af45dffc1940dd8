"""`python -m nllb_prune` is the console script."""

from nllb_prune.cli import main

raise SystemExit(main())
