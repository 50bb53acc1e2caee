"""What the ledger asks SQLite."""

from controller.ledger.records import LARGEST

READ = "kind, id, version, at_s, reason, body, pool, final, number"
# The newest version is the one that was written last, whatever its own number says.
LAST_OF = "SELECT max(number) FROM records WHERE kind = ? AND id = ?"
# The number of the last record that was ever put.
LAST = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'records'"
BEYOND = f"SELECT number FROM records WHERE number > ({LAST}) ORDER BY number"
# Its version, if that is one, and the largest of the thing: they differ where a row was damaged. No
# thing has more versions than there are records; one that says so is passed over by those to come.
_SOUND = "typeof(version) = 'integer' AND version BETWEEN 1 AND "
VERSIONS = f"""
SELECT (SELECT version FROM records WHERE number = ({LAST_OF}) AND {_SOUND} {LARGEST}),
    (SELECT ifnull(max(version), 0) FROM records
    WHERE kind = ? AND id = ? AND {_SOUND} ({LAST}) + 1)
"""
NEWEST = "number = (SELECT max(number) FROM records WHERE kind = r.kind AND id = r.id)"
STILL = f"""
SELECT number FROM records AS r
WHERE number IN (SELECT value FROM json_each(?)) AND {NEWEST} ORDER BY number
"""
LAST_FIRST = "ORDER BY number DESC"
# Of what there is: the newest version of each thing, but of decisions that of each pool.
STATE = """
SELECT number FROM (
    SELECT max(number) AS number FROM records
    WHERE kind IN (SELECT value FROM json_each(?)) AND kind <> 'decision' GROUP BY kind, id
    UNION ALL SELECT max(number) FROM records
    WHERE kind IN (SELECT value FROM json_each(?)) AND kind = 'decision' GROUP BY pool)
ORDER BY number
"""
SINCE = """
SELECT number FROM records
WHERE number > ? AND kind IN (SELECT value FROM json_each(?)) ORDER BY number
"""
PRUNE = """
DELETE FROM records WHERE kind = :kind AND id IN (
    SELECT id FROM (
        SELECT number, id, at_s, final, row_number() OVER (ORDER BY number DESC) AS place
        FROM records JOIN (
            SELECT max(number) AS number FROM records WHERE kind = :kind GROUP BY id
        ) USING (number))
    WHERE (final OR number IN (SELECT value FROM json_each(:left_out)))
        AND (place > :keep OR at_s < :since_s)
        AND id NOT IN (SELECT value FROM json_each(:needed)))
RETURNING number
"""
# A plan's file came with its first version, and is its as long as it is there.
PRUNE_EARLIER = """
DELETE FROM records WHERE number IN (
    SELECT number FROM (
        SELECT number, id, at_s, row_number() OVER (ORDER BY number DESC) AS place
        FROM records WHERE kind = :kind AND blob IS NULL AND number NOT IN (
            SELECT max(number) FROM records WHERE kind = :kind GROUP BY id)) AS earlier
    WHERE place > :earlier OR at_s < :since_s AND (
        SELECT final FROM records WHERE kind = :kind AND id = earlier.id
        ORDER BY number DESC LIMIT 1))
RETURNING number
"""
PRUNES = (PRUNE, PRUNE_EARLIER)
