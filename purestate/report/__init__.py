"""A store for people and programs: findings as frozen data, from what a store holds.

* ``_name``       how a run is named: ``STORE[:CHECKPOINT[@OP]]``
* ``_report``     what all reports share: text, JSON, HTML
* ``_opened``     a store that is read and never written to
* ``_listing``, ``_history``, ``_detail``   the checkpoints of a store; the records of one; an op
* ``_compared``, ``_states``, ``_numbers``, ``_diff``   two logs; two states; two leaves; all of that
* ``_foreign``, ``_hashed``, ``_weights``   files of others as leaves; the hashes of a run or a file; a file and a run, compared
* ``_compare``     whatever two sides somebody has: `purestate.compare`

Nothing is computed here that a log already says, and no tensor is read before a hash differs.
"""
