package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Load reads the configuration from an environment in the form of os.Environ.
// The error is an *Error that lists every problem; the Config is complete only
// if it is nil.
func Load(environ []string) (Config, error) {
	var c Config
	var r report
	parse(environ, &c, &r)
	c.complete(&r)
	c.check(&r)
	return c, r.err()
}

// LoadConsole reads only the settings of the HTTP endpoint, for commands that
// talk to a running instance.
func LoadConsole(environ []string) (Console, error) {
	var c struct{ Console Console }
	var r report
	parse(environ, &c, &r)
	return c.Console, r.err()
}

// LoadRedis reads only the settings of Redis, for commands that need nothing
// else.
func LoadRedis(environ []string) (Redis, error) {
	var c struct{ Redis Redis }
	var r report
	parse(environ, &c, &r)
	c.Redis.complete(&r)
	return c.Redis, r.err()
}

// LoadPostgres reads only the settings of Postgres, for commands that need
// nothing else. An unset POSTGRES_URL defaults to POSTGRES_MIGRATE_URL here,
// since a migration job may have only that one.
func LoadPostgres(environ []string) (Postgres, error) {
	env := toMap(environ)
	for _, suffix := range []string{"", fileSuffix} {
		if env["POSTGRES_URL"] == "" && env["POSTGRES_URL"+fileSuffix] == "" && env["POSTGRES_MIGRATE_URL"+suffix] != "" {
			environ = append(environ[:len(environ):len(environ)], "POSTGRES_URL"+suffix+"="+env["POSTGRES_MIGRATE_URL"+suffix])
		}
	}
	var c struct{ Postgres Postgres }
	var r report
	parse(environ, &c, &r)
	c.Postgres.complete(&r, 0)
	c.Postgres.check(&r)
	return c.Postgres, r.err()
}

// LoadServers reads only the settings of both servers, for commands that need
// nothing else.
func LoadServers(environ []string) (c Config, err error) {
	if c.Redis, err = LoadRedis(environ); err == nil {
		c.Postgres, err = LoadPostgres(environ)
	}
	return c, err
}

// parse fills a struct of flat groups and checks each value on its own.
func parse(environ []string, into any, r *report) {
	values := toMap(environ)
	groups := reflect.ValueOf(into).Elem()
	readSecretFiles(values, groups.Type(), r)
	for i := range groups.NumField() {
		group := groups.Field(i)
		err := env.ParseWithOptions(group.Addr().Interface(), env.Options{
			Environment:         values,
			DefaultValueTagName: "default",
		})
		refused := fieldErrors(err)
		for j := range group.NumField() {
			f := group.Type().Field(j)
			if f.Tag.Get("env") == "" {
				continue
			}
			if source := group.FieldByName(f.Name + "File"); source.IsValid() {
				source.SetString(values[f.Tag.Get("env")+fileSuffix])
			}
			given := values[f.Tag.Get("env")]
			if refused[f.Name] && f.Tag.Get("oneof") == "" {
				r.add(f.Tag.Get("env"), redacted(f, given), "must be %s%s", kind(f.Type), boundsClause(f))
				continue
			}
			checkField(f, group.Field(j), given, r)
		}
	}
}

func toMap(environ []string) map[string]string {
	return env.ToMap(environ)
}

// fieldErrors returns the fields of one group that could not be read. A group is
// flat, so a field's name is unique in it.
func fieldErrors(err error) map[string]bool {
	refused := map[string]bool{}
	var all env.AggregateError
	if errors.As(err, &all) {
		for _, e := range all.Errors {
			var p env.ParseError
			if errors.As(e, &p) {
				refused[p.Name] = true
			}
		}
	}
	return refused
}

// readSecretFiles replaces the value of NAME by the content of the file that
// NAME_FILE names.
func readSecretFiles(values map[string]string, groups reflect.Type, r *report) {
	eachField(groups, func(_ string, f reflect.StructField) {
		if f.Tag.Get("secret") != "true" {
			return
		}
		name := f.Tag.Get("env")
		file := values[name+fileSuffix]
		if file == "" {
			return
		}
		shown := file
		if strings.ContainsAny(file, "@=") {
			shown = hidden // the secret itself, put in the wrong variable
		}
		if values[name] != "" {
			r.add(name+fileSuffix, shown, "must not be set together with %s", name)
			return
		}
		content, err := os.ReadFile(file)
		if err != nil {
			var cause *os.PathError
			if errors.As(err, &cause) {
				err = cause.Err
			}
			r.add(name+fileSuffix, shown, "must be a readable file: %v", err)
			return
		}
		secret := strings.TrimSpace(string(content))
		if secret == "" {
			r.add(name+fileSuffix, shown, "must name a file that is not empty")
		}
		values[name] = secret
	})
}

// checkField applies the rules of one field's tags to its value.
func checkField(f reflect.StructField, v reflect.Value, given string, r *report) {
	name := f.Tag.Get("env")
	if given == "" {
		if f.Tag.Get("required") == "true" && !r.has(name+fileSuffix) {
			r.add(name, "", "must be set%s", orFile(f))
		}
		return
	}
	if words := f.Tag.Get("oneof"); words != "" {
		for word := range strings.SplitSeq(words, "|") {
			if strings.EqualFold(given, word) {
				if v.Kind() == reflect.String {
					v.SetString(word)
				}
				return
			}
		}
		r.add(name, redacted(f, given), "must be one of %s", bounds(f))
		return
	}
	if delays, ok := v.Interface().(Delays); ok && slices.ContainsFunc(delays, func(d time.Duration) bool { return outside(f, int64(d)) }) {
		r.add(name, given, "must be %s%s", kind(f.Type), boundsClause(f))
	}
	if v.CanInt() && outside(f, v.Int()) {
		r.add(name, given, "must be %s%s", kind(f.Type), boundsClause(f))
	}
}

// outside reports whether n breaks the min or max of its field. The tags are
// checked by a test, so that a malformed one cannot get this far.
func outside(f reflect.StructField, n int64) bool {
	if low, ok := limit(f, "min"); ok && n < low {
		return true
	}
	high, ok := limit(f, "max")
	return ok && n > high
}

func limit(f reflect.StructField, tag string) (int64, bool) {
	text := f.Tag.Get(tag)
	if f.Type == reflect.TypeFor[time.Duration]() || f.Type == reflect.TypeFor[Delays]() {
		d, err := time.ParseDuration(text)
		return int64(d), err == nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

func boundsClause(f reflect.StructField) string {
	if f.Tag.Get("min") == "" && f.Tag.Get("max") == "" {
		return ""
	}
	return ", " + bounds(f)
}

func orFile(f reflect.StructField) string {
	if f.Tag.Get("secret") != "true" {
		return ""
	}
	return ", or " + f.Tag.Get("env") + fileSuffix + " to a file that holds it"
}

// redacted returns a given value as it may be shown.
func redacted(f reflect.StructField, given string) string {
	switch f.Type {
	case reflect.TypeFor[RedisURL]():
		return RedisURL(given).String()
	case reflect.TypeFor[PostgresURL]():
		return PostgresURL(given).String()
	case reflect.TypeFor[Secret]():
		return Secret(given).String()
	}
	return given
}

// Setting is one variable with the value in use, without secrets.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Settings lists every variable with the value in use, without secrets, in the
// order of Config.
func (c Config) Settings() []Setting {
	var list []Setting
	groups := reflect.ValueOf(c)
	for i := range groups.NumField() {
		group := groups.Field(i)
		for j := range group.NumField() {
			name := group.Type().Field(j).Tag.Get("env")
			if name == "" {
				continue
			}
			value := fmt.Sprint(group.Field(j).Interface())
			if _, ok := group.Field(j).Interface().(slog.Level); ok {
				value = strings.ToLower(value) // as it is set
			}
			list = append(list, Setting{Name: name, Value: value})
		}
	}
	return list
}

// LogValue returns the configuration as attributes, without secrets.
func (c Config) LogValue() slog.Value {
	var attrs []slog.Attr
	for _, s := range c.Settings() {
		attrs = append(attrs, slog.String(s.Name, s.Value))
	}
	return slog.GroupValue(attrs...)
}
