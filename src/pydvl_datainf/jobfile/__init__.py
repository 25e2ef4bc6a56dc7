"""Runs that a YAML file describes: `pydvl-datainf run JOB.yaml`. Needs the extra [hf]."""
