"""`python -m faqd`, the same as the console command."""

from faqd.command import main

if __name__ == "__main__":
    raise SystemExit(main())
