package cli_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
)

func program() *cobra.Command {
	root := &cobra.Command{Use: "program", Short: "Do things"}
	send := &cobra.Command{Use: "send", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }}
	flags := send.Flags()
	flags.Duration("duration", time.Second, "")
	flags.Uint64("seed", 1, "")
	flags.Float64("rate", 1, "")
	flags.IntSlice("points", nil, "")
	flags.String("log", "", "")
	cobra.CheckErr(send.MarkFlagRequired("log"))
	fails := &cobra.Command{Use: "fails", RunE: func(*cobra.Command, []string) error { return errors.New("a finding") }}
	group := &cobra.Command{Use: "group", Short: "Hold others"}
	group.AddCommand(&cobra.Command{Use: "inner", RunE: func(*cobra.Command, []string) error { return nil }})
	root.AddCommand(send, fails, group)
	cli.Strict(root)
	return root
}

func call(line string) (string, error) {
	root := program()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(strings.Fields(line))
	err := root.Execute()
	return out.String(), err
}

func TestWhatCannotBeUnderstoodIsSaidInWordsForPeople(t *testing.T) {
	for line, want := range map[string]string{
		"snd":                            "unknown command \"snd\"; did you mean send?\nsee program --help",
		"zzz":                            "unknown command \"zzz\"\nsee program --help",
		"group iner":                     "unknown command \"iner\"; did you mean inner?\nsee program group --help",
		"send --log x more":              "unknown command \"more\" for \"program send\"\nsee program send --help",
		"fails more":                     "unknown command \"more\" for \"program fails\"\nsee program fails --help",
		"send":                           "required flag(s) \"log\" not set\nsee program send --help",
		"send --log x --duraton 3s":      "unknown flag: --duraton; did you mean --duration?\nsee program send --help",
		"send --log x -z":                "unknown shorthand flag: 'z' in -z\nsee program send --help",
		"send --log":                     "flag needs an argument: --log\nsee program send --help",
		"send --log x --seed x":          "--seed \"x\": want a whole number, 0 or more\nsee program send --help",
		"send --log x --seed -1":         "--seed \"-1\": want a whole number, 0 or more\nsee program send --help",
		"send --log x --rate fast":       "--rate \"fast\": want a number\nsee program send --help",
		"send --log x --duration 3":      "--duration \"3\": want a duration such as 90s or 10m\nsee program send --help",
		"send --log x --points 1,000,a":  "--points \"1,000,a\": want whole numbers such as 1,10,100\nsee program send --help",
		"send --log x --seed 1 --nope=1": "unknown flag: --nope\nsee program send --help",
	} {
		out, err := call(line)
		require.EqualError(t, err, want, line)
		require.Empty(t, out, line)
		var coded interface{ ExitCode() int }
		require.ErrorAs(t, err, &coded, line)
		require.Equal(t, cli.ExitUsage, coded.ExitCode())
	}
}

func TestOtherErrorsAndHelpPassUnchanged(t *testing.T) {
	_, err := call("fails")
	require.EqualError(t, err, "a finding")
	_, err = call("send --log x")
	require.NoError(t, err)
	for _, line := range []string{"", "group", "send --help"} {
		out, err := call(line)
		require.NoError(t, err, line)
		require.Contains(t, out, "Usage:", line)
	}
}
