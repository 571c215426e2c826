"""Reading of annotation files and images; class tables and bins of classes."""
