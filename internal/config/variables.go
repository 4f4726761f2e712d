package config

import (
	"reflect"
	"strings"
	"time"
)

// Variable describes one variable, as the tags of the structs declare it.
type Variable struct {
	Name     string `json:"name"`
	Group    string `json:"group"`
	Default  string `json:"default"` // in words where it is computed
	Bounds   string `json:"bounds"`
	Help     string `json:"help"`
	Required bool   `json:"required"`
	Secret   bool   `json:"secret"`
}

// fileSuffix is appended to a secret's variable to name a file that holds it.
const fileSuffix = "_FILE"

// Variables lists every variable in the order of Config.
func Variables() []Variable {
	var vars []Variable
	eachField(reflect.TypeFor[Config](), func(group string, f reflect.StructField) {
		v := Variable{
			Name:     f.Tag.Get("env"),
			Group:    group,
			Default:  f.Tag.Get("default"),
			Bounds:   bounds(f),
			Help:     f.Tag.Get("help"),
			Required: f.Tag.Get("required") == "true",
			Secret:   f.Tag.Get("secret") == "true",
		}
		if auto := f.Tag.Get("auto"); auto != "" {
			v.Default = auto
		}
		vars = append(vars, v)
	})
	return vars
}

// eachField visits the fields of a struct of flat groups.
func eachField(groups reflect.Type, visit func(group string, f reflect.StructField)) {
	for i := range groups.NumField() {
		group := groups.Field(i)
		for j := range group.Type.NumField() {
			if f := group.Type.Field(j); f.Tag.Get("env") != "" {
				visit(group.Name, f)
			}
		}
	}
}

// bounds returns the allowed values of a field in words.
func bounds(f reflect.StructField) string {
	if words := f.Tag.Get("oneof"); words != "" {
		return strings.ReplaceAll(words, "|", ", ")
	}
	lowest, highest := f.Tag.Get("min"), f.Tag.Get("max")
	switch {
	case lowest != "" && highest != "":
		return lowest + " to " + highest
	case lowest != "":
		return "at least " + lowest
	case highest != "":
		return "at most " + highest
	case f.Type.Kind() == reflect.Bool:
		return "true, false"
	}
	return ""
}

// kind returns the form of a field's values in words.
func kind(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration such as 500ms, 30s or 5m"
	case t == reflect.TypeFor[Delays]():
		return "durations such as 30s,2m"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		return "a whole number"
	}
	return "text"
}
