#!/bin/sh
# Run once by the image of Postgres when it makes its cluster (deploy/compose.yaml).
set -eu
psql -X -U "$POSTGRES_USER" -d "$POSTGRES_DB" -v owner=owner -v owner_password="$OWNER_PASSWORD" \
	-v role=processor -v password="$PROCESSOR_PASSWORD" -f /security/roles.sql
