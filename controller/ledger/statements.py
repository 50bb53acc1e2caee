"""What the ledger asks SQLite."""

READ = "kind, id, version, at_s, reason, body, pool, final, number"
NEWEST = "version = (SELECT max(version) FROM records WHERE kind = r.kind AND id = r.id)"
LAST_FIRST = "ORDER BY number DESC"
PRUNE = """
DELETE FROM records WHERE kind = :kind AND id IN (
    SELECT id FROM (
        SELECT number, id, at_s, final, row_number() OVER (ORDER BY number DESC) AS place
        FROM records JOIN (
            SELECT kind, id, max(version) AS version FROM records WHERE kind = :kind GROUP BY id
        ) USING (kind, id, version))
    WHERE (final OR number IN (SELECT value FROM json_each(:left_out)))
        AND (place > :keep OR at_s < :since_s)
        AND id NOT IN (SELECT value FROM json_each(:needed)))
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
        ORDER BY version DESC LIMIT 1))
"""
