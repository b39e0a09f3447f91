"""Writes the files of the dashboards."""

from __future__ import annotations

from deploy.monitoring.dashboards import FOLDER, files


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
