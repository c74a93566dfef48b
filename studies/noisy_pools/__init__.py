"""Active learning on pools of which a part has random labels: the tables and claims of LHD's paper."""
