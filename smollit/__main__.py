"""`python -m smollit fit --config configs/sft.yaml`."""

from smollit.main import main

if __name__ == "__main__":
    main()
