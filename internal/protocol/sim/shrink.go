package sim

// Shrink searches for a smaller run that also breaks a promise: with fewer
// faults, entries, devices, shards and members.
func Shrink(failing Config) Result {
	failing.Trace = false
	smallest := Run(failing)
	try := func(c Config) bool {
		r := Run(c)
		if r.Violation != "" {
			smallest = r
		}
		return r.Violation != ""
	}
	for again := true; again; {
		again = false
		for i := len(smallest.Config.Faults) - 1; i >= 0; i-- {
			c := smallest.Config
			c.Faults = append(append([]Fault{}, c.Faults[:i]...), c.Faults[i+1:]...)
			again = try(c) || again
		}
		for _, smaller := range []func(*Config){
			func(c *Config) { c.Entries /= 2 },
			func(c *Config) { c.Entries-- },
			func(c *Config) { c.Devices-- },
			func(c *Config) { c.Shards-- },
			func(c *Config) { c.Members-- },
		} {
			c := smallest.Config
			smaller(&c)
			if c.Entries > 0 && c.Devices > 0 && c.Shards > 0 && c.Members > 0 {
				again = try(c) || again
			}
		}
	}
	last := smallest.Config
	last.Trace = true
	return Run(last)
}
