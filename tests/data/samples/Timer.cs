using System;
using System.Collections.Generic;
using System.Linq;

namespace Timing
{
    public sealed class Timer
    {
        private readonly List<TimeSpan> _laps = new List<TimeSpan>();

        public string Name { get; }

        public Timer(string name)
        {
            Name = name ?? throw new ArgumentNullException(nameof(name));
        }

        public void Add(TimeSpan lap)
        {
            if (lap < TimeSpan.Zero)
            {
                return;
            }
            _laps.Add(lap);
        }

        public double Mean() => _laps.Count == 0 ? 0 : _laps.Average(lap => lap.TotalMilliseconds);

        public override string ToString()
        {
            return $"{Name}: {Mean():F1} ms over {_laps.Count} laps";
        }
    }
}
