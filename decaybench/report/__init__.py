"""Renders a summary: tables for people and for programs. Nothing here computes a result."""

from decaybench.report.tables import to_csv, to_json, to_latex, to_markdown
from decaybench.report.terminal import print_layers, print_summary

__all__ = ["print_layers", "print_summary", "to_csv", "to_json", "to_latex", "to_markdown"]
