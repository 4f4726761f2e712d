package devenv

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// RequireEmptyRedis refuses a Redis target, given by URL instead of started by
// us, that holds anything: a demo or a test must never write into a database
// that is in use. The variable's name goes into the message.
func RequireEmptyRedis(ctx context.Context, variable, rawURL, stream string) error {
	opts, err := RedisOptions(variable, rawURL)
	if err != nil {
		return err
	}
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	if stream != "" {
		n, err := client.Exists(ctx, stream).Result()
		if err != nil {
			return fmt.Errorf("look into %s: %w", variable, err)
		}
		if n > 0 {
			return fmt.Errorf("%s names a Redis that has the stream %s already: use an empty database", variable, stream)
		}
	}
	keys, err := client.DBSize(ctx).Result()
	if err != nil {
		return fmt.Errorf("look into %s: %w", variable, err)
	}
	if keys > 0 {
		return fmt.Errorf("%s names database %d of the Redis at %s, which holds %d keys: use an empty database",
			variable, opts.DB, opts.Addr, keys)
	}
	return nil
}

// RedisOptions parses a Redis URL. Its error names the variable and shows
// nothing of the URL, which may hold a password.
func RedisOptions(variable, rawURL string) (*redis.Options, error) {
	opts, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", variable, withoutURL(err))
	}
	return opts, nil
}

// withoutURL strips what net/url quotes of its input.
func withoutURL(err error) error {
	if quoting := (*url.Error)(nil); errors.As(err, &quoting) {
		return quoting.Err
	}
	return err
}

// RequireEmptyPostgres refuses a Postgres target, given by URL instead of
// started by us, that has positions or the schema of a processor.
func RequireEmptyPostgres(ctx context.Context, variable, rawURL string) error {
	conn, err := pgx.Connect(ctx, rawURL)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", variable, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var schema, table bool
	const look = `
select exists (select from pg_namespace where nspname = 'processor'),
       to_regclass('public.positions') is not null`
	if err := conn.QueryRow(ctx, look).Scan(&schema, &table); err != nil {
		return fmt.Errorf("look into %s: %w", variable, err)
	}
	rows := false
	if table {
		if err := conn.QueryRow(ctx, "select exists (select from public.positions)").Scan(&rows); err != nil {
			return fmt.Errorf("look into %s: %w", variable, err)
		}
	}
	if schema || rows {
		return fmt.Errorf("%s names the database %s, which a processor uses already (schema processor: %t, positions stored: %t): use an empty database",
			variable, conn.Config().Database, schema, rows)
	}
	return nil
}
