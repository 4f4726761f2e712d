package schema

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/pressly/goose/v3"

	"github.com/trmtracking/processor/migrations"
)

// knownMigrations lists the embedded migrations in order.
func knownMigrations() ([]Migration, error) {
	names, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("list embedded migrations: %w", err)
	}
	known := make([]Migration, 0, len(names))
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, fmt.Errorf("embedded migration %s: %w", name, err)
		}
		known = append(known, Migration{Version: version, Name: name})
	}
	return known, nil
}

// PrintSQL writes all migrations as plain SQL, for a platform where another
// service owns the schema. The output may be applied any number of times, even
// to a database that Migrate has migrated.
func PrintSQL(w io.Writer) error {
	known, err := knownMigrations()
	if err != nil {
		return err
	}
	for _, m := range known {
		text, err := fs.ReadFile(migrations.FS, m.Name)
		if err != nil {
			return fmt.Errorf("read embedded migration %s: %w", m.Name, err)
		}
		var out bytes.Buffer
		fmt.Fprintf(&out, "-- %s\n", m.Name)
		lines := bufio.NewScanner(bytes.NewReader(text))
		for lines.Scan() {
			if !strings.HasPrefix(lines.Text(), "-- +goose") {
				out.Write(lines.Bytes())
				out.WriteByte('\n')
			}
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("read embedded migration %s: %w", m.Name, err)
		}
		out.WriteByte('\n')
		if _, err := w.Write(out.Bytes()); err != nil {
			return fmt.Errorf("print migration %s: %w", m.Name, err)
		}
	}
	return nil
}
