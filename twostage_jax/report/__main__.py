"""`python -m twostage_jax.report`."""

from twostage_jax.report import main

if __name__ == "__main__":
    main()
