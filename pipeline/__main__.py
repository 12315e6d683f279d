"""`python -m pipeline COMMAND …`, the same as `wcord COMMAND …`."""

from pipeline.common.working_folder import search_last

if __name__ == "__main__":
    search_last()  # before the rest is imported
    from pipeline.cli.app import main

    main()
