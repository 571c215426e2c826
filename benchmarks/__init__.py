"""Data, recipes and measurements that stand behind the library; never part of the wheel."""
