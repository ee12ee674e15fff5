"""Health records to cohorts: events, code systems, visits, splits, interactions.

Read `schema` for the tables, `cohort` for the way from raw tables to a cohort folder.
"""
