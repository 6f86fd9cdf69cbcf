"""`python -m elbocli`, so that launchers which take a module can run every command."""

from elbocli.main import main

if __name__ == "__main__":
    main()
