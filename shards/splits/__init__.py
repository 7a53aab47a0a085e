"""Train, validation and test subjects: made once, stored with a hash, refused when they differ.

The unit is the subject; groups (families) never cross; strata (target, site) are balanced. The
result depends on the subjects' labels and the seed, not on their order in any table.
"""

from shards.splits.designs import fixed_split, leave_each_site_out, leave_sites_out, make_folds, make_split
from shards.splits.fit import check_groups, check_split, largest_deviation
from shards.splits.lists import read_list, read_parts
from shards.splits.split import PARTS, Split, load_split, publish_splits, save_split
from shards.splits.strata import family_column, quantile_bins, read_strata

__all__ = [
    "PARTS",
    "Split",
    "check_groups",
    "check_split",
    "family_column",
    "fixed_split",
    "largest_deviation",
    "leave_each_site_out",
    "leave_sites_out",
    "load_split",
    "make_folds",
    "make_split",
    "publish_splits",
    "quantile_bins",
    "read_list",
    "read_parts",
    "read_strata",
    "save_split",
]
